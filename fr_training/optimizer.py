"""The optimiser of a recogniser, and its files."""

import json

import torch
from safetensors.torch import load_file, save_file


def make_optimizer(config, model):
    """SGD or AdamW over all trainable weights; the Trainer sets its learning rate at each step."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay)
    return torch.optim.AdamW(weights, lr=0.0, weight_decay=config.weight_decay)


def save_optimizer(optimizer, folder):
    """The optimiser's tensors as safetensors, its plain numbers as JSON."""
    state = optimizer.state_dict()["state"]
    tensors = {
        f"{index}.{name}": value.contiguous()
        for index, values in state.items()
        for name, value in values.items()
        if torch.is_tensor(value)
    }
    save_file(tensors, folder / "optimizer.safetensors", metadata={"keys": json.dumps(sorted(state))})


def load_optimizer(optimizer, folder):
    """Restore what `save_optimizer` wrote; ValueError, or what safetensors raises, for anything else."""
    state, weights = {}, [weight for group in optimizer.param_groups for weight in group["params"]]
    for key, value in load_file(folder / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        if value.shape not in (weights[int(index)].shape, torch.Size([])):
            raise ValueError(f"{key} has another shape than its weight")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
