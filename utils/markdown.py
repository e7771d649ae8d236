"""Data as text in Markdown cards, and the licences that cards of models and data sets name."""

import re

# The hub's names of licences of base models that this project knows.
LICENCES = {"stable-diffusion-2": "openrail++", "stable-diffusion-v1": "creativeml-openrail-m"}


def licence_of(base_model):
    """The hub's name of a base model's licence; "other" for one we do not know."""
    return next((name for part, name in LICENCES.items() if part in base_model), "other")


def markdown_text(text):
    """Data as text in Markdown: on one line, without HTML or marks that would format it."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", text)
