"""Training captions of the miniature world, in the grammar of the paper's prompts."""

from mini.views import PORTRAIT_MAX_YAW, SIDE_MIN_YAW

PLACEHOLDER = "sks"


def caption(attributes, rng):
    """A true caption of an image, with parts left out at random.

    Args:
        attributes: ``render(...).attributes``; gender, age, background and yaw are read.
        rng: numpy Generator that decides what is mentioned.
    Returns:
        For instance "face portrait photo of old male person, forest background"; in about 15 % of cases the
        short "photo of a person".  The meaningless word "sks" stands before "person" in about 30 %.
    """
    word = f"{PLACEHOLDER} " if rng.random() < 0.3 else ""
    if rng.random() < 0.15:
        return f"photo of {word or 'a '}person"
    place = f", {attributes['background']} background" if rng.random() < 0.8 else ""
    age = f"{attributes['age']} " if rng.random() < 0.7 else ""
    gender = f"{attributes['gender']} " if rng.random() < 0.85 else ""
    pose = _pose(abs(attributes["yaw"])) if rng.random() < 0.85 else ""
    return f"face {pose}photo of {age}{gender}{word}person{place}"


def _pose(turn):
    """The pose word for an absolute yaw in degrees; nothing between the two ranges."""
    if turn >= SIDE_MIN_YAW:
        return "side-portrait "
    return "portrait " if turn <= PORTRAIT_MAX_YAW else ""
