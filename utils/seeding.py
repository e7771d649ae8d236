"""Random streams that depend on what a thing is, never on the order or the company it is made in."""

import hashlib


def derive_seed(*parts):
    """A seed in [0, 2**63) from any printable parts, stable over machines and Python versions."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") >> 1


def torch_generator(*parts):
    """A CPU torch.Generator seeded with :func:`derive_seed` of ``parts``."""
    import torch  # here, as it takes seconds that many callers of derive_seed need for nothing

    return torch.Generator().manual_seed(derive_seed(*parts))
