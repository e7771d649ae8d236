"""Margin-softmax heads: ArcFace, CosFace and AdaFace, on embeddings that are not normalised.

Each head holds `kernel` (embedding_size, num_classes), one class centre per column, and turns embeddings
(N, embedding_size) and labels (N,) int64 into scaled logits (N, num_classes) for an ordinary cross entropy.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

EPS = 1e-3  # AdaFace's own: keeps angles off 0 and pi, and the norms' spread off zero


class MarginHead(nn.Module):
    """Cosines between embeddings and class centres, scaled by `s` after `margin` changed the target's.

    Args:
        embedding_size: length of an embedding.
        num_classes: number of identities.
        s: scale of the logits.
        m: margin, in radians (angle) or in cosine, as the head defines it.
    """

    def __init__(self, embedding_size: int, num_classes: int, s: float, m: float):
        super().__init__()
        self.s, self.m = s, m
        self.kernel = nn.Parameter(self.start(torch.empty(embedding_size, num_classes)))

    @staticmethod
    def start(kernel: Tensor) -> Tensor:
        """Class centres to begin with: normal, deviation 0.01, as insightface's arcface_torch has them."""
        return nn.init.normal_(kernel, std=0.01)

    def cosines(self, embeddings: Tensor) -> Tensor:
        """(N, num_classes) cosines in float32, whatever the autocast around."""
        with torch.autocast(embeddings.device.type, enabled=False):
            unit = functional.normalize(embeddings.float(), dim=1)
            return unit @ functional.normalize(self.kernel.float(), dim=0)

    def with_target(self, cosines: Tensor, labels: Tensor, target: Tensor) -> Tensor:
        """The scaled logits with `target` (N,) in place of each row's own-class cosine."""
        return self.s * cosines.scatter(1, labels[:, None], target[:, None].to(cosines.dtype))


class ArcFace(MarginHead):
    """Additive angular margin, cos(theta + m) (Deng et al., CVPR 2019, eq. 3).

    Beyond theta = pi - m the cosine would rise again; there the target is cos(theta) - m sin(m), as in
    insightface's code, so that the logit keeps falling with the angle.
    """

    def __init__(self, embedding_size: int, num_classes: int, s: float = 64.0, m: float = 0.5):
        super().__init__(embedding_size, num_classes, s, m)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        cosines = self.cosines(embeddings)
        target = cosines.gather(1, labels[:, None])[:, 0]
        # The square root's slope is infinite at 1: an embedding on its centre must not turn into NaN.
        sine = (1.0 - target**2).clamp_min(1e-9).sqrt()
        moved = target * math.cos(self.m) - sine * math.sin(self.m)
        beyond = target - self.m * math.sin(self.m)
        return self.with_target(cosines, labels, torch.where(target > -math.cos(self.m), moved, beyond))


class CosFace(MarginHead):
    """Additive cosine margin, cos(theta) - m (Wang et al., CVPR 2018, eq. 4)."""

    def __init__(self, embedding_size: int, num_classes: int, s: float = 64.0, m: float = 0.4):
        super().__init__(embedding_size, num_classes, s, m)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        cosines = self.cosines(embeddings)
        return self.with_target(cosines, labels, cosines.gather(1, labels[:, None])[:, 0] - self.m)


class AdaFace(MarginHead):
    """Margin that adapts to image quality, read off the embedding's norm (Kim et al., CVPR 2022, eq. 8-11).

    z = clip((norm - mean) / (std / h), -1, 1) with running mean and std of the batches' norms;
    target = cos(theta - m z) - (m z + m). Start values (20, 100) and the clamps are those of the authors'
    code; `t_alpha` is the weight of the newest batch in the running values. While training, `forward` first
    updates the running values; over several processes they are those of the whole batch.
    """

    @staticmethod
    def start(kernel: Tensor) -> Tensor:
        """Class centres to begin with: uniform in a cube, then of length one, as in AdaFace's own code."""
        return functional.normalize(nn.init.uniform_(kernel, -1.0, 1.0), dim=0)

    def __init__(
        self,
        embedding_size: int,
        num_classes: int,
        m: float = 0.4,
        h: float = 0.333,
        s: float = 64.0,
        t_alpha: float = 0.01,
    ):
        super().__init__(embedding_size, num_classes, s, m)
        self.h, self.t_alpha = h, t_alpha
        self.register_buffer("batch_mean", torch.tensor(20.0))
        self.register_buffer("batch_std", torch.tensor(100.0))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        norms = embeddings.detach().float().norm(dim=1).clamp(0.001, 100.0)
        if self.training:
            self.update(norms)
        z = ((norms - self.batch_mean) / (self.batch_std + EPS) * self.h).clamp(-1.0, 1.0)
        cosines = self.cosines(embeddings).clamp(-1.0 + EPS, 1.0 - EPS)
        theta = cosines.gather(1, labels[:, None])[:, 0].acos()
        target = (theta - self.m * z).clamp(EPS, math.pi - EPS).cos() - (self.m + self.m * z)
        return self.with_target(cosines, labels, target)

    @torch.no_grad()
    def update(self, norms: Tensor):
        """Move the running mean and std towards those of `norms` (N,); one item alone has no spread."""
        norms = gather(norms)
        self.batch_mean.lerp_(norms.mean(), self.t_alpha)
        if len(norms) > 1:
            self.batch_std.lerp_(norms.std(), self.t_alpha)


def gather(values: Tensor) -> Tensor:
    """`values` (N,) of all processes, in rank order; N is equal on all of them."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values
    parts = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)


HEADS = {"ArcFace": ArcFace, "CosFace": CosFace, "AdaFace": AdaFace}
