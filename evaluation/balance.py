"""A seeded choice of a person's samples, balanced over the backgrounds and poses of their prompts."""

import re
from collections import Counter

import numpy as np

from id_booth.prompts import BACKGROUNDS
from utils.identities import natural_key
from utils.seeding import derive_seed


def prompt_group(prompt):
    """(background or "", pose) that a prompt of the published grammar asks for."""
    found = re.search(r", (.+) background$", prompt)
    background = found.group(1) if found and found.group(1) in BACKGROUNDS else ""
    return background, "side" if "side-portrait" in prompt else "front"


def choose(name, files, count, seed, groups, taken=()):
    """`count` of `files` (fewer when there are no more) in natural order; the groups take turns.

    One image of each group in turn, in an order drawn from (seed, identity, group). So the images for 10 are
    among those for 21, and do not depend on which other identities there are.

    Args:
        name: the identity. files: Paths. groups: (name, file's stem) -> (background, pose), as far as known.
        taken: groups of images that are taken already, beside `count`.
    """
    piles = {}
    for file in sorted(files, key=lambda path: natural_key(path.name)):
        piles.setdefault(groups.get((name, file.stem), ("", "")), []).append(file)
    for group, pile in piles.items():
        np.random.default_rng(derive_seed("choose", seed, name, *group)).shuffle(pile)
    # A turn takes one of each background; within a background the poses alternate.
    order = sorted(piles, key=lambda group: derive_seed("turn", seed, name, *group))
    counts, chosen = Counter(), []

    def take(group):
        counts["background", group[0]] += 1
        counts["pose", group[1]] += 1

    for group in taken:
        take(group)
    while len(chosen) < min(count, len(files)):
        group = min(
            (group for group in order if piles[group]),
            key=lambda group: (counts["background", group[0]], counts["pose", group[1]]),
        )
        chosen.append(piles[group].pop())
        take(group)
    return sorted(chosen, key=lambda path: natural_key(path.name))
