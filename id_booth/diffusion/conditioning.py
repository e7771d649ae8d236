"""What a UNet is conditioned on beside the timestep, as one value."""

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Conditioning:
    """The conditioning of N items; a family of base models may have tensors of its own in ``added``.

    ``text``: (N, L, D) embeddings of the prompts' tokens. ``added``: what the family's UNet takes as
    ``added_cond_kwargs``, name -> (N, ...).
    """

    text: torch.Tensor
    added: dict = field(default_factory=dict)

    def __len__(self):
        return len(self.text)

    def __getitem__(self, rows):
        """Some items: rows as for a tensor's first dimension."""
        return self.map(lambda tensor: tensor[rows])

    def map(self, function):
        """The same with ``function`` applied to each tensor."""
        return Conditioning(function(self.text), {k: function(tensor) for k, tensor in self.added.items()})

    def to(self, *arguments):
        """On another device or in another dtype."""
        return self.map(lambda tensor: tensor.to(*arguments))

    def repeat(self, counts):
        """Item i ``counts[i]`` times in a row."""
        rows = [self[i : i + 1].map(lambda t, n=n: t.expand(n, *t.shape[1:])) for i, n in enumerate(counts)]
        return concatenated(rows)

    def unet_arguments(self):
        """Keyword arguments of the UNet's call."""
        added = {"added_cond_kwargs": self.added} if self.added else {}
        return {"encoder_hidden_states": self.text} | added


def concatenated(parts):
    """One Conditioning of all items of several, in order."""
    first = parts[0]
    added = {name: torch.cat([part.added[name] for part in parts]) for name in first.added}
    return Conditioning(torch.cat([part.text for part in parts]), added)
