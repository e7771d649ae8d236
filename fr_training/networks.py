"""Backbones by name, embedding of crops, and files of trained networks: safetensors and ONNX."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from arcface_files import iresnet
from arcface_files.faces import ARCFACE_SIZE
from arcface_files.iresnet import IResNet
from utils.errors import UserError
from utils.files import atomic_path

TINY_DEPTHS, TINY_WIDTHS = (1, 1, 1, 1), (8, 16, 48, 96)
ONNX_OPSET = 13


def build_network(name, embedding_size, dropout=0.0):
    """A backbone with random weights: iresnet18/34/50/100, iresnet_slim, or iresnet_tiny.

    iresnet_tiny has fewer channels at high resolution and half the FLOPs of iresnet_slim.
    """
    if name == "iresnet_tiny":
        return IResNet(TINY_DEPTHS, TINY_WIDTHS, embedding_size, dropout)
    return getattr(iresnet, name)(embedding_size, dropout)


def to_input(images, device="cpu"):
    """uint8 RGB crops (N, 112, 112, 3), array or tensor, as networks take them: float32 NCHW in [-1, 1]."""
    if not torch.is_tensor(images):
        images = torch.as_tensor(np.require(images, requirements="W"))
    pixels = images.to(device, non_blocking=True)
    return pixels.permute(0, 3, 1, 2).float().sub_(127.5).div_(127.5)


@torch.inference_mode()
def embed(network, images, device="cpu", batch_size=256, flip=True):
    """Embeddings float32 (N, D) of uint8 crops, not normalised; `flip` adds the mirrored crop's."""
    training = network.training
    network.eval()
    parts = []
    for start in range(0, len(images), batch_size):
        x = to_input(images[start : start + batch_size], device)
        parts.append((network(x) + network(x.flip(3)) if flip else network(x)).float().cpu())
    network.train(training)
    return torch.cat(parts).numpy()


def save_network(network, path):
    """Write the weights as safetensors, whole or not at all."""
    with atomic_path(path) as temporary:
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, temporary)


def load_weights(module, path):
    """Load safetensors into `module`, strictly; UserError when they do not fit."""
    try:
        module.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise UserError(f"{path}: not found") from None
    except Exception as error:  # safetensors and torch raise several types for damaged and for other files
        raise UserError(
            f"{path}: does not fit this configuration or is damaged ({type(error).__name__}); "
            "delete the run folder or restore its settings"
        ) from error


def export_onnx(network, path):
    """Write the network as an insightface recogniser: input (N, 3, 112, 112), RGB, (x - 127.5) / 127.5."""
    network = network.eval().cpu()
    example = torch.zeros(1, 3, ARCFACE_SIZE, ARCFACE_SIZE)
    axes = {"input.1": {0: "N"}, "embedding": {0: "N"}}
    with atomic_path(Path(path)) as temporary:
        # The TorchScript exporter needs no package beyond onnx, and folds each batch norm that it can.
        torch.onnx.export(
            network,
            (example,),
            str(temporary),
            opset_version=ONNX_OPSET,
            dynamo=False,
            input_names=["input.1"],
            output_names=["embedding"],
            dynamic_axes=axes,
        )
