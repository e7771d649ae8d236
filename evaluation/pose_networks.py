"""Networks for head pose: 6DRepNet with its official weights, and the 3D landmarks of an insightface pack.

6DRepNet (Hempel et al., ICIP 2022) is a RepVGG-B1g2 with a six-dimensional rotation output. The published
file is the deployed form, in which each block is one 3x3 convolution.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from arcface_files.face_pack import onnx_files, open_network, resolve_pack
from arcface_files.recogniser import condensed, read_pth, read_safetensors
from configs.evaluation_config import SOURCES
from evaluation.pose import five_point_pose, pose_from_3d
from utils.devices import device_of
from utils.errors import UserError
from utils.files import sha256_file
from utils.images import load_image

SOURCE = SOURCES["pose_weights"]
BLOCKS, WIDTHS, STEM = (4, 6, 16, 1), (128, 256, 512, 2048), 64
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INPUT = 224
# 6DRepNet's own demo widens the face box by a fifth on each side.
BOX_SCALE = 1.4
METHODS = ("five_point", "pack_3d", "6drepnet")
POSE_LICENCES = {"five_point": "", "pack_3d": "that of the pack", "6drepnet": "MIT (6DRepNet)"}


class DeployedBlock(nn.Module):
    """A RepVGG block in its deployed form: one 3x3 convolution and a ReLU."""

    def __init__(self, in_channels, channels, stride, groups):
        super().__init__()
        self.rbr_reparam = nn.Conv2d(in_channels, channels, 3, stride, 1, groups=groups)

    def forward(self, x):
        return torch.relu(self.rbr_reparam(x))


class SixDRepNet(nn.Module):
    """float (N, 3, 224, 224), ImageNet-normalised RGB -> rotation matrices (N, 3, 3)."""

    def __init__(self, blocks=BLOCKS, widths=WIDTHS, stem=STEM):
        super().__init__()
        self.layer0 = DeployedBlock(3, stem, 2, 1)
        channels, index = stem, 1
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), start=1):
            layers = []
            for block in range(count):
                # "g2": every second 3x3 layer, counted through all stages, has two groups.
                layers.append(DeployedBlock(channels, width, 2 if block == 0 else 1, 2 - index % 2))
                channels, index = width, index + 1
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.linear_reg = nn.Linear(channels, 6)

    def forward(self, x):
        for stage in range(5):
            x = getattr(self, f"layer{stage}")(x)
        return rotation_from_six(self.linear_reg(x.mean((2, 3))))


def rotation_from_six(six):
    """(N, 6) -> (N, 3, 3) by Gram-Schmidt; the three columns are x, y, z (Zhou et al., CVPR 2019)."""
    x = nn.functional.normalize(six[:, :3], dim=1, eps=1e-8)
    z = nn.functional.normalize(torch.linalg.cross(x, six[:, 3:]), dim=1, eps=1e-8)
    return torch.stack([x, torch.linalg.cross(z, x), z], 2)


def load_sixdrepnet(path):
    """6DRepNet in eval mode from the official deployed file (.pth, weights only, or .safetensors); strict.

    Raises:
        UserError: the file is missing, holds code, or holds other weights.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no 6DRepNet weights; get {SOURCE}")
    state = read_safetensors(path) if path.suffix == ".safetensors" else read_pth(path)
    if any("rbr_dense" in name for name in state):
        raise UserError(f"{path}: 6DRepNet before deployment; convert it with upstream's convert.py")
    network = SixDRepNet()
    try:
        network.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    except RuntimeError as error:
        raise UserError(f"{path}: not 6DRepNet ({condensed(error)}); get {SOURCE}") from None
    return network.eval().requires_grad_(False)


def network_angles(rotations):
    """Yaw, pitch, roll in degrees (N, 3) of 6DRepNet's matrices, by its own Euler angles (R = Rz Ry Rx)."""
    r = np.asarray(rotations, np.float64)
    pitch = np.arctan2(r[:, 2, 1], r[:, 2, 2])
    yaw = np.arctan2(-r[:, 2, 0], np.hypot(r[:, 0, 0], r[:, 1, 0]))
    roll = np.arctan2(r[:, 1, 0], r[:, 0, 0])
    return np.degrees(np.stack([yaw, pitch, roll], -1))


@torch.inference_mode()
def sixdrepnet_pose(network, crops):
    """Yaw, pitch, roll in degrees (N, 3) of uint8 RGB square crops of any size."""
    device = device_of(network)
    mean, std = (torch.tensor(values).view(3, 1, 1).to(device) for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = torch.from_numpy(np.stack([shrunk(crop) for crop in crops])).to(device)
    pixels = pixels.permute(0, 3, 1, 2).float() / 255
    return network_angles(network((pixels - mean) / std).cpu().numpy())


def bordered(crops, border):
    """Crops (N, H, W, 3) with a black border of that many pixels on each side (the published 30 or 50)."""
    return np.pad(crops, ((0, 0), (border, border), (border, border), (0, 0)))


def photo_crop(image, box, scale=BOX_SCALE):
    """The square of `scale` times the longer side of the box around its centre; black outside the photo."""
    half = max(int(round(scale * max(box[2] - box[0], box[3] - box[1]) / 2)), 1)
    half = min(half, max(image.shape))  # a box may be of any size
    x, y = (int(round((box[k] + box[k + 2]) / 2)) for k in (0, 1))
    x, y = np.clip(x, 0, image.shape[1]), np.clip(y, 0, image.shape[0])
    inside = image[max(0, y - half) : y + half, max(0, x - half) : x + half]
    top, left = max(0, half - y), max(0, half - x)
    bottom, right = 2 * half - top - inside.shape[0], 2 * half - left - inside.shape[1]
    return np.pad(inside, ((top, bottom), (left, right), (0, 0)))


def shrunk(crop):
    """A uint8 RGB crop in the size of 6DRepNet's input."""
    return np.array(Image.fromarray(crop).resize((INPUT, INPUT), Image.BILINEAR))


def open_pack_landmarks(pack, device="cpu"):
    """The 3D landmark network of a pack (1k3d68.onnx of buffalo_l); UserError when it has none."""
    folder = resolve_pack(pack)
    for path in onnx_files(folder):
        network = open_network(path, device)
        if getattr(network, "taskname", "") == "landmark_3d_68":
            return network
    raise UserError(f"{folder}: no 3D landmarks (1k3d68.onnx) in this pack; use pose five_point")


def face_pose(faces, method="five_point", weights=None, pack=None, border=None, batch_size=32, device="cpu"):
    """Yaw, pitch, roll in degrees, float64 (M, 3), of every face of a FaceSet.

    Args:
        method: "five_point", "pack_3d" (needs `pack`) or "6drepnet" (needs `weights`).
        border: of 6DRepNet: None crops the photo around the box, roll kept; a number of pixels takes the
            aligned 112-pixel crop with a black border that wide, as published (30, and 50 before).
        device: of the networks.
    """
    if method == "five_point":
        return five_point_pose(faces.landmarks)
    if method == "pack_3d":
        return pack_pose(faces, open_pack_landmarks(pack, device))
    if method != "6drepnet":
        raise UserError(f"pose: {method!r} is unknown; one of {', '.join(METHODS)}")
    if weights is None:
        raise UserError(f"pose_weights: 6DRepNet needs its weights; get {SOURCE}")
    network, angles = load_sixdrepnet(weights).to(device), [np.zeros((0, 3))]
    for start in range(0, len(faces.index), batch_size):
        positions = range(start, min(start + batch_size, len(faces.index)))
        if border is not None:
            crops = bordered(faces.crops(positions), border)
        else:
            # Each in its final size at once: a crop of a large photo takes hundreds of megabytes.
            crops = [shrunk(photo_crop(load_image(faces.path(p)), faces.boxes[p])) for p in positions]
        angles.append(sixdrepnet_pose(network, crops))
    return np.concatenate(angles)


def pack_pose(faces, network):
    """Pose of every face from the 68 3D landmarks of a pack's network, (M, 3)."""
    from insightface.app.common import Face as InsightFace  # heavy, and only needed here

    points = [np.zeros((0, 68, 3))]
    for position, box in enumerate(faces.boxes):
        bgr = np.ascontiguousarray(load_image(faces.path(position))[..., ::-1])
        points.append(network.get(bgr, InsightFace(bbox=box))[None])
    return pose_from_3d(np.concatenate(points))


def pose_source(method, weights=None, pack=None, border=None):
    """How the report names the method: network, hash, crop."""
    if method == "five_point":
        return "five landmarks, average face fitted"
    if method == "pack_3d":
        return f"3D landmarks of pack {Path(pack).name}"
    crop = "crop of the photo" if border is None else f"aligned crop with {border} px border"
    return f"6DRepNet ({sha256_file(weights)[:8]}), {crop}"
