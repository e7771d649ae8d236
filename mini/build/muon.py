"""The Muon optimiser: momentum orthogonalised by Newton-Schulz steps, which converges fast in short
trainings.

Keller Jordan et al. 2024 (kellerjordan.github.io/posts/muon); update scale of Liu et al. 2025
(arXiv:2502.16982), which lets Muon and AdamW share one learning rate. torch.optim.Muon takes matrices only;
here convolutions count as matrices (out channels x the rest), and everything else gets AdamW.
"""

from collections import defaultdict

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices, steps=5):
    """Replace the singular values of float matrices (N, rows, columns) by values near 1."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for weights with at least two axes, with decoupled weight decay.

    Updates are orthogonalised in ``dtype``; bfloat16, as in its authors' code, halves the time of a step
    where matmuls in it are fast.
    """

    def __init__(self, weights, lr, momentum=0.95, weight_decay=0.0, dtype=torch.float32):
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        """One update; weights of one shape are orthogonalised together."""
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape[weight.shape].append(weight)
            for weights in by_shape.values():
                self._update(weights, group)

    def _update(self, weights, group):
        rows = weights[0].shape[0]
        updates = []
        for weight in weights:
            buffer = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
            buffer.lerp_(weight.grad, 1 - group["momentum"])
            updates.append(weight.grad.lerp(buffer, group["momentum"]).reshape(rows, -1))
        matrices = orthogonalise(torch.stack(updates).to(self.dtype)).to(weights[0].dtype)
        scale = 0.2 * max(matrices.shape[1:]) ** 0.5
        for weight, matrix in zip(weights, matrices, strict=True):
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(matrix.view_as(weight), alpha=-group["lr"] * scale)
