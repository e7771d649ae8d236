"""Data as text in Markdown cards."""

import re


def markdown_text(text):
    """Data as text in Markdown: on one line, without HTML or marks that would format it."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", text)
