"""How much memory a network of others would take, counted before it is taken."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# Operations that give a plain number, which a tensor without content lacks.
NUMBERS = (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)


class CountedMemory(TorchDispatchMode):
    """Within this context tensors are made only as long as all of them together stay below a limit.

    Each operation is first done on tensors without content ("meta"), which gives the sizes of its results.
    Views count in full: the next operation may make real what they claim.

    Args:
        limit: bytes.

    Raises:
        MemoryError: at the operation that would exceed it.
    """

    def __init__(self, limit):
        super().__init__()
        self.limit, self.taken = limit, 0

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # to be skipped, torch's compiler would first be imported, which takes a second

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function not in NUMBERS:
            self.taken += sum(map(size_of, tree_leaves(without_content(function, args, kwargs))))
            if self.taken > self.limit:
                raise MemoryError(f"it asks for more than {self.limit / 2**30:.3g} GiB of memory")
        return function(*args, **kwargs)


def without_content(function, args, kwargs):
    """The results of an operation as tensors that have a shape only."""
    args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
    if any(argument.name == "device" for argument in function._schema.arguments):
        kwargs = {**kwargs, "device": "meta"}
    return function(*args, **kwargs)


def size_of(value):
    """Bytes that a tensor claims; 0 for anything else."""
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 0
