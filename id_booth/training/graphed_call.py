"""A function of tensors that is recorded once as a CUDA graph and then replayed.

A training step's UNet call starts some 4,300 kernels, forward and backward; a fast GPU finishes them before
Python has started the next. A replay starts them all at once.
"""

import gc

import torch
from torch.utils._pytree import tree_leaves, tree_map

from utils.devices import out_of_memory
from utils.progress import log


class GraphedCall:
    """A function of tensors (and dicts of them) and its replay, with gradient to the arguments that want one.

    Arguments of other shapes are recorded anew, in place of the former. Each result lies where the former one
    lay: it must be used before the next call. Where recording fails the function is called as it is.

    Args:
        function: gives one tensor, from its arguments alone; nothing in it may wait for the device.
        record: (function, sample arguments) -> the function that replays.
    """

    def __init__(self, function, record=torch.cuda.make_graphed_callables):
        self.function, self.record = function, record
        self.replay = self.shapes = None

    def forget(self):
        """Give the memory of the recording back: graph and tensors refer to each other in a circle."""
        if self.replay is not None:
            self.replay = self.shapes = None
            gc.collect()

    def __call__(self, *arguments):
        shapes = [(tensor.shape, tensor.dtype) for tensor in tree_leaves(arguments)]
        if shapes != self.shapes:
            self.forget()
            self.replay, self.shapes = self.recorded(arguments), shapes
        return self.replay(*arguments)

    def recorded(self, arguments):
        """The function that replays, for arguments of these shapes."""
        try:
            return self.record(self.function, tree_map(own_copy, arguments))
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            log(f"cuda_graph: cannot be recorded ({reason[:160]}); going on without")
            return self.function


def own_copy(tensor):
    """A tensor of the same kind for the graph to read from, outside of what computed the original."""
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)
