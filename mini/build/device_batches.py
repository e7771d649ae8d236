"""Batches of the base model that are drawn where they are used, so that a GPU waits for nothing in a step.

All latents lie on the device, and of every picture a number of captions as tokens. A step's draws come from
the device's own generator, seeded by (seed, step): so they repeat on the same kind of device, but differ from
those that mini.build.base_model.sample_batch draws on the CPU, whose captions are made anew at each step.
"""

import concurrent.futures
import multiprocessing

import numpy as np
import torch

from mini.build.captions import caption
from utils.seeding import derive_seed

CAPTIONS_EACH = 16  # of a picture; what is left out of them differs
EMPTY_CAPTIONS = 1024  # those that are dropped for guidance: empty ones and parts of the negative prompt
SHARE = 2000  # pictures whose captions a process makes at a time


class DeviceBatches:
    """Latents and tokens of the whole training set, on the device.

    Args:
        latents: mini.build.latents.Latents; moved to the device.
        tokens: int16 (N, CAPTIONS_EACH, L); dropped: int16 (EMPTY_CAPTIONS, L).
        share_dropped: of the captions that one of ``dropped`` replaces.
        batch: pictures per step. seed: of the build. device: torch.device.
    """

    def __init__(self, latents, tokens, dropped, share_dropped, batch, seed, device):
        self.latents, self.batch, self.seed = latents.to(device), batch, seed
        self.tokens, self.dropped, self.share = tokens.to(device), dropped.to(device), share_dropped
        self.generator = torch.Generator(device)

    def draw(self, step):
        """What :func:`mini.build.base_model.sample_batch` gives, with tokens (B, L) int64 for captions."""
        generator, batch = (
            self.generator.manual_seed(derive_seed("device batch", self.seed, step)),
            self.batch,
        )
        own = {"generator": generator, "device": generator.device}
        pictures = torch.randint(len(self.latents), (batch,), **own)
        clean = self.latents.sample(pictures, torch.randint(2, (batch,), **own), generator)
        noise = torch.randn(clean.shape, **own)
        places = torch.arange(batch, device=generator.device) + torch.rand(batch, **own)
        timesteps = (places * (1000 / batch)).long().clamp(max=999)
        tokens = self.tokens[pictures, torch.randint(self.tokens.shape[1], (batch,), **own)]
        empty = self.dropped[torch.randint(len(self.dropped), (batch,), **own)]
        drop = torch.rand(batch, 1, **own) < self.share
        return clean, noise, timesteps, torch.where(drop, empty, tokens).long()


def caption_tokens(attributes, tokenize, seed, processes=1):
    """Tokens of CAPTIONS_EACH captions of every picture, int16 (N, CAPTIONS_EACH, L).

    Args:
        attributes: of each picture. tokenize: captions -> token ids (N, L); a function that pickles.
        processes: that make the captions; they change nothing.
    """
    parts = [attributes[first : first + SHARE] for first in range(0, len(attributes), SHARE)]
    jobs = [(part, tokenize, seed, number) for number, part in enumerate(parts)]
    if processes == 1:
        return torch.cat([part_tokens(*job) for job in jobs])
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context) as pool:
        return torch.cat([torch.from_numpy(part) for part in pool.map(part_array, jobs)])


def part_array(job):
    """:func:`part_tokens` as an array, which goes from process to process in one piece."""
    return part_tokens(*job).numpy()


def part_tokens(attributes, tokenize, seed, number):
    """Tokens of some pictures' captions, which depend on (seed, number) alone."""
    rng = np.random.default_rng(derive_seed("captions", seed, number))
    captions = [caption(one, rng) for one in attributes for _ in range(CAPTIONS_EACH)]
    return tokenize(captions).to(torch.int16).view(len(attributes), CAPTIONS_EACH, -1)
