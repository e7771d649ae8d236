"""Before the first step: does the identity branch see the faces that it is to compare?

A window decoded alone, or TAESD's picture, stands for the whole picture only as far as the user's own base
model lets it; embeddings of others may be of other colours or scales. Nothing of that stops a training, it
would only learn less. So some photos go through the branch without gradient, and what comes out is compared.
"""

import torch
from torch.nn.functional import cosine_similarity

from id_booth.training.identity_branch import WHOLE
from utils.errors import UserError
from utils.progress import log

PHOTOS = 4  # looked at, spread over those of an identity
# Least cosine of the face in the branch's picture with that in the whole picture: in a window only the edges
# may differ; TAESD gives faces .92 at 512 pixels.
LEAST = {"face": 0.98, "taesd": 0.9}
STRANGERS = 0.3  # below lie different people
BETTER = 0.02  # by which another reading of an embedding must fit better to be believed
MISREADINGS = {
    "with red and blue swapped": lambda crops: crops.flip(1),
    "in [0, 1] instead of [-1, 1]": lambda crops: (crops + 1) / 2,
}


@torch.no_grad()
def start_check(photos, pixels, given, widen, config, models, branch):
    """Look at some photos of an identity as the identity branch will.

    Args:
        photos: Photos; its windows are widened where that is needed. pixels: its images (n, 3, H, W) in
            [-1, 1]. given: (n,) bool, whose embedding somebody else has made. widen: function of a margin,
            giving windows. config: TrainConfig. models: FrozenModels. branch: IdentityBranch.

    Returns:
        dict for the run record: the photos, and the figures that were compared.

    Raises:
        UserError: the stored embeddings are not of the faces in the photos, as the recogniser sees them.
    """
    indices = photos.has_embedding.nonzero().flatten()
    chosen = indices[torch.linspace(0, len(indices) - 1, min(PHOTOS, len(indices))).round().long()].tolist()
    look = Look(photos, chosen, models)
    record = {"photos": [photos.paths[i].name for i in chosen]}
    record["stored_cosine"] = check_stored(look, pixels, given, branch)
    expected, found = look.embeddings(branch, WHOLE)
    record["faces_found"] = f"{int(found.sum())} of {len(chosen)}"
    if not found.all():
        log(
            f"{photos.name}: coded and decoded, {record['faces_found']} photos have a face for the detector; "
            "predictions without one get no identity term (--face-crop aligned needs no detector)"
        )
    if found.any() and config.identity_decode in LEAST:
        record |= check_windows(look, expected, widen, config, branch)
    return record


class Look:
    """Some photos of an identity: their noise-free latents and what a branch sees in them."""

    def __init__(self, photos, chosen, models):
        self.photos, self.chosen, self.models = photos, chosen, models
        self.matrices = photos.matrices.to(models.device)

    def embeddings(self, branch, window=None):
        """Embeddings (k, D) of the photos' decoded latents, and (k,) bool; one by one, which needs least."""
        seen = []
        for index in self.chosen:
            windows = self.photos.windows[[index]] if window is None else torch.tensor([window])
            seen.append(branch.embeddings(self.latents(index), self.matrices[[index]], windows))
        return torch.cat([e for e, _ in seen]), torch.cat([found for _, found in seen])

    def cosine(self, branch, expected):
        """The least cosine of what a branch sees in the photos' windows with what is expected, (k, D)."""
        seen, _ = self.embeddings(branch)
        cosines = cosine_similarity(seen, expected)[expected.any(1)]
        return cosines.min().item()

    def latents(self, index):
        """The mean of a photo's posterior, (1, C, h, w), as the UNet sees it."""
        if self.photos.mean is None:
            mean, _ = self.models.encode(self.photos.pixels[[index]])
        else:
            mean = self.photos.mean[[index]].to(self.models.device)
        return self.models.scale_latents(mean)


def check_stored(look, pixels, given, branch):
    """The mean cosine of stored embeddings with those that the branch gives for the photos themselves.

    None where the detector finds no face in these. Embeddings of others are also compared with what the usual
    mistakes give.
    """
    device = look.models.device
    crops, kept = branch.crop(pixels[look.chosen].to(device), look.matrices[look.chosen], None)
    if not kept:
        return None
    indices = torch.tensor(look.chosen)[kept]
    stored = look.photos.embeddings[indices].to(device)

    def cosine(shown):
        return cosine_similarity(branch.recogniser(shown), stored).mean().item()

    own = cosine(crops)
    if given[indices].all():
        for what, misread in MISREADINGS.items():
            if (other := cosine(misread(crops))) > max(own + BETTER, STRANGERS):
                raise UserError(
                    f"{look.photos.name}: the given embeddings fit faces {what} (cosine {other:.3f}) better "
                    f"than those of this recogniser ({own:.3f}); remove them and extract again"
                )
    if own < STRANGERS:
        raise UserError(
            f"{look.photos.name}: the stored embeddings are not of these faces, or of another recogniser "
            f"(cosine {own:.2f} with the photos' own); extract again with the recogniser of this config"
        )
    return round(own, 4)


def check_windows(look, expected, widen, config, branch):
    """Widen the windows until they show the faces of the whole pictures; else these are decoded.

    Args:
        expected: (k, D), embeddings of the whole pictures; the rest see :func:`start_check`.
    """
    least, margin, side = LEAST[config.identity_decode], config.face_margin, look.models.latent_shape[-1]
    cosine = narrowest = look.cosine(branch, expected)
    while cosine < least:
        if (look.photos.windows[:, 2:] == side).all():
            look.photos.windows = torch.tensor([WHOLE]).expand(len(look.photos), -1).clone()
            margin, cosine = None, 1.0
            break
        margin = max(1, 2 * margin)
        look.photos.windows = widen(margin)
        cosine = look.cosine(branch, expected)
    if margin != config.face_margin:
        size = f"with a margin of {margin} latents" if margin else "whole, by the VAE"
        log(
            f"{look.photos.name}: faces are decoded {size}; as configured ({config.identity_decode}, margin "
            f"{config.face_margin}) their cosine with those of the whole picture is {narrowest:.3f}"
        )
    return {
        "narrowest_window_cosine": round(narrowest, 4),
        "window_cosine": round(cosine, 4),
        "margin": margin,
    }
