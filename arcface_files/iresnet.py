"""The improved residual network of ArcFace (IResNet), one class for every depth and width.

Source: Deng et al., "ArcFace", CVPR 2019, and the PyTorch recipe of insightface (arcface_torch). State-dict
names and shapes are those of arcface_torch, so that a published `backbone.pth` loads strictly.

Input of every network: float (N, 3, 112, 112), RGB in [-1, 1]; output: float (N, num_features), not
normalised.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

INPUT_SIZE = 112
FINAL_GRID = 7  # 112 pixels halved by each of the four stages
DEPTHS = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
}
WIDTHS = (64, 128, 256, 512)
SLIM_DEPTHS, SLIM_WIDTHS = (1, 2, 2, 1), (16, 32, 64, 64)
BN_EPS = 1e-5


class IBasicBlock(nn.Module):
    """BN, 3x3 conv, BN, PReLU, 3x3 conv (strided), BN, plus the shortcut; no activation after the sum."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels, eps=BN_EPS)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels, eps=BN_EPS)
        self.prelu = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels, eps=BN_EPS)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels, eps=BN_EPS)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(x)) + shortcut


class IResNet(nn.Module):
    """IResNet with `depths[i]` blocks of `widths[i]` channels in stage i; the stem has widths[0] channels."""

    def __init__(
        self,
        depths: Sequence[int],
        widths: Sequence[int] = WIDTHS,
        num_features: int = 512,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.embedding_size = num_features
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0], eps=BN_EPS)
        self.prelu = nn.PReLU(widths[0])
        inputs = (widths[0], *widths[:3])
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            self._stage(*stage) for stage in zip(inputs, widths, depths, strict=True)
        )
        self.bn2 = nn.BatchNorm2d(widths[3], eps=BN_EPS)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(widths[3] * FINAL_GRID**2, num_features)
        self.features = nn.BatchNorm1d(num_features, eps=BN_EPS)
        # arcface_torch fixes the last scale at 1: the losses look at directions only.
        nn.init.constant_(self.features.weight, 1.0)
        self.features.weight.requires_grad = False
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.1)

    @staticmethod
    def _stage(in_channels: int, channels: int, depth: int) -> nn.Sequential:
        first = IBasicBlock(in_channels, channels, stride=2)
        return nn.Sequential(first, *(IBasicBlock(channels, channels, stride=1) for _ in range(depth - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 112, 112) RGB in [-1, 1] -> (N, num_features), not normalised."""
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.dropout(torch.flatten(self.bn2(x), 1))
        # Under autocast the convolutions run in half precision; the embedding itself stays in float32.
        with torch.autocast(x.device.type, enabled=False):
            if x.dtype != self.fc.weight.dtype:
                x = x.to(self.fc.weight.dtype)
            return self.features(self.fc(x))


def iresnet18(num_features: int = 512, dropout: float = 0.0) -> IResNet:
    """IResNet-18 of arcface_torch, random weights; 24.0 M parameters."""
    return IResNet(DEPTHS["iresnet18"], WIDTHS, num_features, dropout)


def iresnet34(num_features: int = 512, dropout: float = 0.0) -> IResNet:
    """IResNet-34 of arcface_torch, random weights; 34.1 M parameters."""
    return IResNet(DEPTHS["iresnet34"], WIDTHS, num_features, dropout)


def iresnet50(num_features: int = 512, dropout: float = 0.0) -> IResNet:
    """IResNet-50 of arcface_torch, random weights; 43.6 M parameters."""
    return IResNet(DEPTHS["iresnet50"], WIDTHS, num_features, dropout)


def iresnet100(num_features: int = 512, dropout: float = 0.0) -> IResNet:
    """IResNet-100 of arcface_torch, random weights; 65.2 M parameters."""
    return IResNet(DEPTHS["iresnet100"], WIDTHS, num_features, dropout)


def iresnet_slim(num_features: int = 256, dropout: float = 0.0) -> IResNet:
    """The same network in the widths of the miniature world, random weights; 1.1 M parameters."""
    return IResNet(SLIM_DEPTHS, SLIM_WIDTHS, num_features, dropout)


def iresnet_from_state_dict(state: dict[str, Tensor]) -> IResNet:
    """An IResNet of the depth, widths and embedding size that `state` shows, its weights loaded strictly.

    Raises KeyError or RuntimeError when `state` is not that of an IResNet.
    """
    stages = range(1, 5)
    depths = [len({name.split(".")[1] for name in state if name.startswith(f"layer{i}.")}) for i in stages]
    widths = [state[f"layer{i}.0.conv2.weight"].shape[0] for i in stages]
    network = IResNet(depths, widths, state["fc.weight"].shape[0])
    network.load_state_dict(state, strict=True)
    return network
