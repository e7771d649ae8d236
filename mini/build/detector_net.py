"""The mini detector: network, training targets, loss, and export in the form of SCRFD.

A fully convolutional network of about 0.2 million parameters with a feature pyramid (Lin et al., 2017) at
strides 8, 16 and 32 and one head for the three, after SCRFD (Guo et al., ICLR 2022): per cell a score, the
distances from the cell's corner to the four sides of the box, and the offsets of five landmarks, all in units
of the stride. The cell in column c and row r stands for the pixel (c * stride, r * stride). Landmarks are
found by voting: every cell of a finer level predicts an offset to each landmark and a weight, and a face's
landmark is the weighted mean of the predictions around its cell, since cells near a landmark locate it best.
"""

import copy

import torch
from torch import nn
from torch.nn import functional

from utils.files import atomic_path

STRIDES = (8, 16, 32)
# Sizes (square root of the box area, in pixels) of the faces each stride detects. They overlap, so that a
# face of a size in between is found by one of two levels; non-maximum suppression removes the duplicates.
SIZE_RANGES = ((0, 48), (36, 120), (100, float("inf")))
CENTRE_RADIUS = 1.3  # cells nearer than this to the face's centre, in strides, are positives
IGNORE_RADIUS = 2.3  # cells between the two radii do not count in the score's loss
OPSET = 12
# Where the votes on the landmarks of each level's faces come from: level of the voting cells, how many of
# them lie along one cell of the face's level, and standard deviation of the Gaussian window in voting cells.
VOTES = ((0, 1, 1.2), (0, 2, 2.4), (1, 2, 2.4))


class ConvUnit(nn.Sequential):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs, outputs, kernel=3, stride=1, groups=1):
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        """Features (N, C, H, W) of the same shape."""
        return x + self.layers(x)


def plain(width):
    """A residual 3 x 3 convolution."""
    return Residual(ConvUnit(width, width))


def separable(width):
    """A residual 5 x 5 depthwise and 1 x 1 pointwise convolution: a large receptive field, few parameters."""
    return Residual(ConvUnit(width, width, 5, groups=width), ConvUnit(width, width, 1))


class DetectorNet(nn.Module):
    """Images (N, 3, H, W), RGB scaled by (x - 127.5) / 128, H and W multiples of 32.

    Returns, for each stride, (N, 15, H / stride, W / stride): the score before the sigmoid, four distances
    before the softplus, ten landmark offsets.
    """

    def __init__(self, neck=48):
        super().__init__()
        self.stem = nn.Sequential(ConvUnit(3, 16, stride=2), ConvUnit(16, 24, stride=2))
        self.stage8 = nn.Sequential(ConvUnit(24, 48, stride=2), plain(48), plain(48))
        self.stage16 = nn.Sequential(ConvUnit(48, 56, stride=2), plain(56), plain(56))
        self.stage32 = nn.Sequential(ConvUnit(56, 64, stride=2), *(separable(64) for _ in range(3)))
        self.laterals = nn.ModuleList(nn.Conv2d(width, neck, 1) for width in (48, 56, 64))
        self.smooth = nn.ModuleList(separable(neck) for _ in STRIDES)
        # The levels share the head's convolution but not its norm: their statistics differ.
        self.head = nn.Conv2d(neck, neck, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(neck) for _ in STRIDES)
        self.outputs = nn.ModuleList(nn.Conv2d(neck, 5, 1) for _ in STRIDES)
        self.vote_heads = nn.ModuleList(nn.Conv2d(neck, 15, 1) for _ in STRIDES[:2])
        self.vote_means = nn.ModuleList(LandmarkVote(per_cell, reach) for _, per_cell, reach in VOTES)
        for layer in (*self.outputs, *self.vote_heads):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        for layer in self.outputs:  # faces are rare: start from a probability of one in a hundred
            nn.init.constant_(layer.bias[:1], -4.6)
            nn.init.constant_(layer.bias[1:5], 2.0)

    def forward(self, images):
        """Images -> one raw output per stride, as described above."""
        at8 = self.stage8(self.stem(images))
        at16 = self.stage16(at8)
        at32 = self.stage32(at16)
        features = [lateral(level) for lateral, level in zip(self.laterals, (at8, at16, at32), strict=True)]
        for level in (1, 0):
            larger = functional.interpolate(features[level + 1], scale_factor=2.0, mode="nearest")
            features[level] = features[level] + larger
        levels = zip(self.norms, self.smooth, features, strict=True)
        heads = [functional.relu(norm(self.head(smooth(feature)))) for norm, smooth, feature in levels]
        votes = [layer(head) for layer, head in zip(self.vote_heads, heads[:-1], strict=True)]
        landmarks = [mean(votes[level]) for mean, (level, _, _) in zip(self.vote_means, VOTES, strict=True)]
        scores_boxes = [layer(head) for layer, head in zip(self.outputs, heads, strict=True)]
        return [torch.cat(pair, 1) for pair in zip(scores_boxes, landmarks, strict=True)]


class LandmarkVote(nn.Module):
    """Weighted mean of the landmark positions that the cells in a window predict.

    Args:
        per_cell: voting cells along one cell of the face's level, in x and in y.
        reach: standard deviation of the Gaussian window, in voting cells; it is cut off at 2.5 of them.
    """

    def __init__(self, per_cell, reach):
        super().__init__()
        self.per_cell, self.radius = per_cell, round(2.5 * reach)
        along = torch.arange(-self.radius, self.radius + 1.0)
        bell = torch.exp(-0.5 * (along / reach) ** 2)
        self.register_buffer("bell", bell.repeat(10, 1, 1, 1), persistent=False)
        self.register_buffer("step", (bell * along).repeat(10, 1, 1, 1), persistent=False)

    def forward(self, votes):
        """Landmark offsets (N, 10, H / per_cell, W / per_cell) in cells of the face's level.

        Args:
            votes: (N, 15, H, W), ten offsets in voting cells and five weights before the sigmoid.
        """
        weights = (votes[:, 10:].sigmoid() + 1e-4).repeat_interleave(2, 1)
        total = self.sum_around(weights, self.bell, self.bell, 10)
        along_x = self.sum_around(weights[:, ::2], self.step, self.bell, 5)
        along_y = self.sum_around(weights[:, ::2], self.bell, self.step, 5)
        moved = torch.stack([along_x, along_y], 2).flatten(1, 2)
        offsets = self.sum_around(weights * votes[:, :10], self.bell, self.bell, 10)
        return (offsets + moved) / (total * self.per_cell)

    def sum_around(self, values, across, down, channels):
        """Channel-wise convolution with the window across (x) times down (y), at the face's level."""
        radius, stride = self.radius, self.per_cell
        rows = functional.conv2d(values, across[:channels], None, (1, stride), (0, radius), groups=channels)
        return functional.conv2d(rows, down[:channels].mT, None, (stride, 1), (radius, 0), groups=channels)


class Affine(nn.Module):
    """A batch norm in evaluation mode as scale and shift, so that the exporter does not fold it.

    Folded, the shared convolution would be stored once per level.
    """

    def __init__(self, norm):
        super().__init__()
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        shift = norm.bias - norm.running_mean * scale
        self.scale, self.shift = (nn.Parameter(part.detach()[:, None, None]) for part in (scale, shift))

    def forward(self, x):
        """Features (N, C, H, W) of the same shape."""
        return x * self.scale + self.shift


class NeighbourMean(nn.Module):
    """Box distances and landmark offsets averaged over a cell and its eight neighbours.

    Neighbours of a face's centre predict the same face, with errors of their own; moved to the cell's corner
    and weighted by their squared scores, their mean is more accurate than a single prediction.
    """

    def __init__(self):
        super().__init__()
        along = torch.tensor([[-1.0, 0, 1]]).repeat(3, 1)
        self.register_buffer("steps", torch.stack([along, along.T])[:, None])
        # How a step in x or y to a neighbour changes left, top, right, bottom, then x and y of the landmarks.
        signs = torch.tensor([-1.0, -1, 1, 1] + [1.0] * 10)
        self.register_buffer("signs", signs[:, None, None])

    def forward(self, scores, values):
        """Scores (N, 1, H, W) and values (N, 14, H, W) in strides -> values of the same shape."""
        weights = scores**2
        # Away from faces the weights vanish; the floor avoids a division by zero there.
        total = functional.avg_pool2d(weights, 3, 1, 1) + 1e-7
        moved = functional.conv2d(weights, self.steps, padding=1).repeat(1, 7, 1, 1) * self.signs / 9
        return (functional.avg_pool2d(weights * values, 3, 1, 1) + moved) / total


class ScrfdForm(nn.Module):
    """A DetectorNet with the nine outputs of SCRFD: scores, box distances, landmark offsets by stride.

    Outputs are (N, 2 * cells, 1 | 4 | 10). insightface expects two anchors per cell; the second one's score
    is always 0.
    """

    def __init__(self, network):
        super().__init__()
        self.network = copy.deepcopy(network).eval()
        self.network.norms = nn.ModuleList(Affine(norm) for norm in network.norms)
        self.mean = NeighbourMean()

    def forward(self, images):
        """Images (N, 3, H, W) -> the nine outputs."""
        scores, boxes, points = [], [], []
        for raw in self.network(images):
            score = raw[:, :1].sigmoid()
            values = self.mean(score, torch.cat([functional.softplus(raw[:, 1:5]), raw[:, 5:]], 1))
            scores.append(anchors(torch.stack([score, score * 0], -1)))
            boxes.append(anchors(torch.stack([values[:, :4]] * 2, -1)))
            points.append(anchors(torch.stack([values[:, 4:]] * 2, -1)))
        return (*scores, *boxes, *points)


def anchors(values):
    """(N, C, H, W, anchors) -> (N, H * W * anchors, C), insightface's order."""
    return values.flatten(2).transpose(1, 2)


def export_detector(network, path):
    """Write the network as ONNX (batch, height and width dynamic) to ``path``, whole or not at all."""
    names = [f"{kind}_{stride}" for kind in ("score", "bbox", "kps") for stride in STRIDES]
    axes = {name: {0: "batch", 1: f"anchors_{name.split('_')[1]}"} for name in names}
    form = ScrfdForm(network).eval()
    with atomic_path(path) as temporary:
        torch.onnx.export(
            form,
            torch.zeros(2, 3, 128, 128),
            str(temporary),
            input_names=["input"],
            output_names=names,
            opset_version=OPSET,
            dynamo=False,
            dynamic_axes={"input": {0: "batch", 2: "height", 3: "width"}, **axes},
        )


def cell_corners(height, width, stride):
    """Pixels (height * width, 2), x and y, that the cells of a level stand for."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([columns, rows], -1).reshape(-1, 2).float() * stride


def assign(corners, stride, sizes, boxes, required):
    """Assign faces to the cells of a level.

    Args:
        corners: (K, 2) pixels; sizes: (low, high) of the faces this level detects.
        boxes: (F, 4) pixels; required: (F,) bool, false for faces that may be missed (cut off by the border).
    Returns:
        face (K,) int64, the index of the nearest face; positive (K,) bool; ignored (K,) bool, cells without a
        target for the score.
    """
    if not len(boxes):
        nothing = torch.zeros(len(corners), dtype=torch.bool)
        return torch.zeros(len(corners), dtype=torch.int64), nothing, nothing
    centres, extent = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    size = extent.prod(1).sqrt()
    distance = (corners[:, None] - centres).norm(dim=2) / stride
    nearest, face = distance.min(1)
    mine = (size[face] >= sizes[0]) & (size[face] < sizes[1]) & required[face]
    positive = mine & (nearest < CENTRE_RADIUS)
    cut_off = ((corners[:, None] - centres).abs() < 0.3 * extent).all(2)[:, ~required].any(1)
    return face, positive, ~positive & ((nearest < IGNORE_RADIUS) & mine | cut_off)


def level_targets(shape, stride, sizes, scenes):
    """Targets of one level for a batch: (positive, ignored) bool (N, K), boxes (P, 4), landmarks (P, 10) and
    face sizes (P, 1) in strides relative to the positive cells, in the order of ``positive``."""
    corners = cell_corners(*shape, stride)
    positive, ignored, boxes, points, extents = [], [], [], [], []
    for scene_boxes, landmarks, required in scenes:
        face, inside, unclear = assign(corners, stride, sizes, scene_boxes, required)
        positive.append(inside)
        ignored.append(unclear)
        chosen, at = face[inside], corners[inside]
        box = scene_boxes[chosen]
        boxes.append(torch.cat([at - box[:, :2], box[:, 2:] - at], 1) / stride)
        points.append((landmarks[chosen] - at[:, None]).flatten(1) / stride)
        extents.append((box[:, 2:] - box[:, :2]).prod(1, keepdim=True).sqrt() / stride)
    return torch.stack(positive), torch.stack(ignored), *map(torch.cat, (boxes, points, extents))


def box_overlap(first, second):
    """Intersection over union (P,) of boxes given as distances (P, 4) from one point to their sides."""
    inner = torch.minimum(first, second)
    intersection = (inner[:, 0] + inner[:, 2]).clamp(min=0) * (inner[:, 1] + inner[:, 3]).clamp(min=0)
    areas = [(box[:, 0] + box[:, 2]) * (box[:, 1] + box[:, 3]) for box in (first, second)]
    return intersection / (areas[0] + areas[1] - intersection).clamp(min=1e-6)


def focal_loss(logits, targets, gamma=2.0):
    """Focal loss without class weights (Lin et al., ICCV 2017), per element."""
    plain = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return plain * (logits.sigmoid() - targets).abs() ** gamma


def detection_loss(outputs, scenes):
    """Loss of a batch.

    Args:
        outputs: DetectorNet's output.
        scenes: per image (boxes (F, 4), landmarks (F, 5, 2), required (F,) bool), float32 tensors in pixels.
    Returns:
        (score, box, landmark) losses, each a scalar per positive cell: focal loss, 1 - IoU, and the mean L1
        distance in hundredths of the face's size.
    """
    total, cells = outputs[0].new_zeros(3), 0
    for raw, stride, sizes in zip(outputs, STRIDES, SIZE_RANGES, strict=True):
        positive, ignored, boxes, points, extents = level_targets(raw.shape[2:], stride, sizes, scenes)
        raw = raw.flatten(2).transpose(1, 2)
        score = (focal_loss(raw[..., 0], positive.float()) * ~ignored).sum()
        overlap = box_overlap(functional.softplus(raw[..., 1:5][positive]), boxes)
        distance = ((raw[..., 5:][positive] - points).abs() / extents).mean(1)
        total = total + torch.stack([score, (1 - overlap).sum(), 100 * distance.sum()])
        cells += int(positive.sum())
    return total / max(cells, 1)
