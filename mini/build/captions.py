"""Training captions of the miniature world, in the grammar of the paper's prompts.

As in Stable Diffusion's training captions, the word before "person" may be a name, and a name always means
the same person. So the model learns that this word decides the identity. RARE_WORD is what fine-tuning fills
with a person, and no caption shows it: a word that stood for anybody would be taught to mean nobody.
"""

from itertools import islice, product

import numpy as np

from mini.world.views import PORTRAIT_MAX_YAW, SIDE_MIN_YAW

RARE_WORD = "sks"
HAIR_COLOURS = {
    "black": (0.10, 0.08, 0.07),
    "brown": (0.36, 0.23, 0.13),
    "blond": (0.82, 0.68, 0.45),
    "red": (0.58, 0.22, 0.09),
    "grey": (0.75, 0.75, 0.75),
}
HAIR_STYLES = {
    "buzz": "very short",
    "short": "short",
    "side-part": "short",
    "quiff": "short",
    "curly": "curly",
    "receding": "short",
    "shoulder": "long",
    "long": "long",
    "long-fringe": "long",
    "bob": "bob of",
    "bun": "bun of",
    "curly-long": "long curly",
    "pixie": "short",
    "side-part-long": "long",
    "bob-fringe": "bob of",
}
BEARDS = {"moustache": "moustache", "goatee": "goatee", "full": "beard", "long": "long beard"}
EXPRESSIONS = {"smile": "smiling", "laugh": "laughing", "surprise": "surprised", "sad": "sad"}


def names(count):
    """The first ``count`` (at most 3,136) names of fictional people: "baba", "babe", ..."""
    syllables = [a + b for a, b in product("bdfghklmnprstv", "aeio")]
    return [first + second for first, second in islice(product(syllables, syllables), count)]


def hair_words(identity):
    """The hair in words, such as "long curly blond hair", or "bald head"."""
    if identity.hair_style == "bald":
        return "bald head"
    distance = {
        word: np.abs(identity.hair - np.float32(colour)).sum() for word, colour in HAIR_COLOURS.items()
    }
    return f"{HAIR_STYLES[identity.hair_style]} {min(distance, key=distance.get)} hair"


def skin_word(identity):
    """ "pale", "tan" or "dark" skin."""
    brightness = float(identity.skin.mean())
    return "pale" if brightness > 0.72 else "tan" if brightness > 0.48 else "dark"


def caption(attributes, rng):
    """A true caption of an image, with parts left out at random.

    Args:
        attributes: ``render(...).attributes``, and ``name`` where the person has one.
        rng: numpy Generator that decides what is mentioned.
    Returns:
        For instance "face portrait photo of old male person, forest background" or "face photo of female
        baba person with long red hair and glasses"; in about 15 % of cases the short "photo of a person".
        A name is mentioned in about 70 %.
    """
    name = attributes.get("name")
    word = f"{name} " if name is not None and rng.random() < 0.7 else ""
    if rng.random() < 0.15:
        return f"photo of {word or 'a '}person"
    place = f", {attributes['background']} background" if rng.random() < 0.8 else ""
    age = f"{attributes['age']} " if rng.random() < 0.7 else ""
    gender = f"{attributes['gender']} " if rng.random() < 0.85 else ""
    pose = _pose(abs(attributes["yaw"])) if rng.random() < 0.85 else ""
    looks = _looks(attributes, rng) if rng.random() < 0.4 else ""
    return f"face {pose}photo of {age}{gender}{word}person{looks}{place}"


def _pose(turn):
    """The pose word for an absolute yaw in degrees; nothing between the two ranges."""
    if turn >= SIDE_MIN_YAW:
        return "side-portrait "
    return "portrait " if turn <= PORTRAIT_MAX_YAW else ""


def _looks(attributes, rng):
    """ " with long red hair and glasses", " smiling with dark skin", ...; each true part in about half."""
    parts = [attributes["hair"], f"{attributes['skin']} skin", BEARDS.get(attributes["beard"], "")]
    parts.append("glasses" if attributes["glasses"] != "none" else "")
    said = " and ".join(part for part in parts if part and rng.random() < 0.5)
    mood = EXPRESSIONS.get(attributes["expression"], "")
    mood = f" {mood}" if mood and rng.random() < 0.5 else ""
    return f"{mood} with {said}" if said else mood
