"""How many identities train in one batch when the config leaves it to the memory (cohort_size "auto")."""

import psutil
import torch

from utils.progress import log

MOST = 16  # beyond, a batch of SD 2.1 no longer gains
SHARE = 0.6  # of the free memory; gradients on their way and the allocator's gaps take the rest
FACE_SIDE = 0.7  # a face window's side beside the image's, on the large side


def cohort_size(config, models, branch, people):
    """Identities per batch: the config's number, or as many as memory holds, at most MOST and ``people``.

    Results do not depend on it (every identity has its own adapter, optimiser state and random stream).

    Args:
        config: TrainConfig. models: TrainingModels. branch: IdentityBranch or None.
        people: identities this process will train at most.
    """
    if config.cohort_size != "auto":
        return config.cohort_size
    if config.optimizer != "adamw" or people < 2:
        return 1
    each = bytes_per_identity(config, models, branch)
    free = free_memory(models.device)
    size = max(1, min(MOST, people, int(SHARE * free / each)))
    log(f"cohort: {size} identities in a batch ({each / 2**20:.0f} MiB each, {free / 2**30:.1f} GiB free)")
    return size


def free_memory(device):
    """Free bytes on the device, those that torch holds without use included."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def bytes_per_identity(config, models, branch):
    """What a further identity keeps on the device during a step: activations, adapter, optimiser state."""
    models.set_cohort_size(1)
    size = config.train_batch_size
    items = size * (2 if config.with_prior_preservation else 1)
    slots = torch.zeros(items, dtype=torch.int64)
    latents = torch.zeros(items, *models.latent_shape, device=models.device)
    with SavedTensors(models.vae, *models.base.parts.values()) as saved:
        output = models.predict(latents, slots.to(models.device), slots, size)
        if branch:
            side = round(FACE_SIDE * models.latent_shape[-1])
            windows = torch.tensor([[0, 0, side, side]]).expand(size, -1)
            branch.decode(output[:size], None if config.identity_decode == "full" else windows)
    # Weights, gradients and two moments, 4 bytes each.
    return saved.bytes + 16 * models.adapters.weights.numel()


class SavedTensors(torch.autograd.graph.saved_tensors_hooks):
    """Adds up, in ``bytes``, what the forward passes in the block keep for the backward pass.

    Each storage counts once, and the weights of ``networks`` not at all.
    """

    def __init__(self, *networks):
        weights = [tensor for network in networks for tensor in network.state_dict().values()]
        self.bytes = 0
        self.seen = {tensor.untyped_storage().data_ptr(): None for tensor in weights}
        super().__init__(self.keep, lambda tensor: tensor)

    def __enter__(self):
        super().__enter__()
        return self

    def keep(self, tensor):
        """Count a tensor; holding its storage keeps the address from being used twice."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen[storage.data_ptr()] = storage
            self.bytes += storage.nbytes()
        return tensor
