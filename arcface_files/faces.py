"""The one face stack: detection and recognition by an insightface pack, alignment to the ArcFace template.

Images are uint8 RGB (H, W, 3); landmarks are (5, 2) float32 x, y in pixels, pixel centres at integers (the
convention of cv2), in insightface's order: left eye (image left), right eye, nose, left and right mouth
corner.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch.nn import functional

from arcface_files.face_pack import open_network, pack_models
from utils.errors import UserError, one_line

ARCFACE_SIZE = 112
# What a recogniser is shown: the face moved to the ArcFace template by its five landmarks, or, as in the
# official code of ID-Booth, the detected box, stretched. Embeddings of the two cannot be compared.
CROPS = ("aligned", "box")
# insightface.utils.face_align.arcface_dst, for 112 x 112 pixels.
ARCFACE_TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
    dtype=np.float32,
)

# Detector outputs of insightface: number of outputs -> (strides, anchors per cell), with five landmarks.
LAYOUTS = {9: ((8, 16, 32), 2), 15: ((8, 16, 32, 64, 128), 1)}
MAX_CANVAS = 640
MAX_PADDED = 200_000_000  # pixels of a photo with its margin; a larger one is shrunk first


@dataclass(frozen=True)
class Face:
    """A detected face: box (4,) float32 x1, y1, x2, y2 and landmarks (5, 2) float32 in pixels; score 0..1."""

    box: np.ndarray
    landmarks: np.ndarray
    score: float

    @property
    def area(self):
        """Area of the box in square pixels."""
        return float((self.box[2] - self.box[0]) * (self.box[3] - self.box[1]))


def similarity_transform(landmarks, size=ARCFACE_SIZE):
    """The (2, 3) float64 matrix that takes `landmarks` (5, 2) to the ArcFace template of `size` pixels.

    Least squares over scale, rotation and translation (Umeyama, 1991). In two dimensions the optimum has a
    closed form: with centred points as complex numbers, the factor is sum(conj(p) q) / sum(|p|^2).

    Raises:
        ValueError: the landmarks coincide or are not finite.
    """
    points = np.asarray(landmarks, dtype=np.float64)
    target = ARCFACE_TEMPLATE.astype(np.float64) * (size / ARCFACE_SIZE)
    p, q = points - points.mean(0), target - target.mean(0)
    spread = (p**2).sum()
    if not np.isfinite(spread) or spread < 1e-9:
        raise ValueError("the five landmarks coincide or are not finite")
    a = (p * q).sum() / spread
    b = (p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]).sum() / spread
    linear = np.array([[a, -b], [b, a]])
    return np.column_stack([linear, target.mean(0) - linear @ points.mean(0)])


def align(image, landmarks, size=ARCFACE_SIZE):
    """The face cut out of a uint8 image (H, W, 3) and moved to the template: uint8 (size, size, 3).

    Bilinear, black outside the image, as insightface.utils.face_align.norm_crop. Bilinear sampling looks at
    four pixels, so a face much larger than `size` aliases; recognisers were trained on such crops, and
    :func:`warp_aligned` does the same.
    """
    matrix = similarity_transform(landmarks, size)
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=0)


def warp_aligned(images, matrices, size=ARCFACE_SIZE, border=0.0):
    """:func:`align` as a differentiable warp; the two agree within 1/255 on average.

    Args:
        images: float (N, C, H, W).
        matrices: (N, 2, 3) from :func:`similarity_transform`, tensor or array.
        border: the value of black: 0 for images in [0, 1], -1 for images in [-1, 1].

    Returns:
        (N, C, size, size) in the dtype of `images`, with gradient to them.
    """
    height, width = images.shape[-2:]
    # Invert in float64: the translation of a small face in a large photo costs float32 its sub-pixels.
    matrices = torch.as_tensor(matrices, dtype=torch.float64).to(images.device)
    steps = torch.arange(size, dtype=torch.float64, device=images.device)
    template = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).reshape(1, -1, 2)
    source = (template - matrices[:, None, :, 2]) @ inverse_2x2(matrices[:, :, :2]).transpose(1, 2)
    # Half precision would place the samples half a pixel wrong: sample in float32 at least.
    exact = images if images.dtype == torch.float64 else images.float()
    # grid_sample counts from -1 at the outer edge of the first pixel to 1 at that of the last.
    grid = (
        torch.stack([(source[..., 0] + 0.5) * (2 / width), (source[..., 1] + 0.5) * (2 / height)], -1) - 1.0
    )
    grid = grid.reshape(-1, size, size, 2).to(exact)
    sample = sample_bilinear if torch.are_deterministic_algorithms_enabled() else functional.grid_sample
    warped = sample(exact - border, grid, "bilinear", "zeros", align_corners=False)
    return (warped + border).to(images.dtype)


def inverse_2x2(matrices):
    """Inverses of (N, 2, 2) matrices; unlike torch.linalg.inv without a look at the device."""
    (a, b), (c, d) = matrices.permute(1, 2, 0)
    inverse = torch.stack([torch.stack([d, -b], -1), torch.stack([-c, a], -1)], 1)
    return inverse / (a * d - b * c)[:, None, None]


def sample_bilinear(images, grid, *_, **__):
    """torch's grid_sample (bilinear, zeros, align_corners=False); its backward pass sums in a fixed order."""
    count, _, height, width = images.shape
    x, y = ((grid[..., 0] + 1) * width - 1) / 2, ((grid[..., 1] + 1) * height - 1) / 2
    pixels, batch = images.permute(0, 2, 3, 1), torch.arange(count, device=images.device)[:, None, None]
    total = 0
    for column, row in ((0, 0), (1, 0), (0, 1), (1, 1)):
        left, top = x.floor() + column, y.floor() + row
        inside = (left >= 0) & (left < width) & (top >= 0) & (top < height)
        weight = (1 - (x - left).abs()) * (1 - (y - top).abs()) * inside
        place = batch, top.clamp(0, height - 1).long(), left.clamp(0, width - 1).long()
        total = total + pixels[place] * weight[..., None]
    return total.permute(0, 3, 1, 2)


def crop_face(image, face, crop):
    """The face of a uint8 image (H, W, 3) as one of CROPS: uint8 (112, 112, 3); None for a box outside."""
    if crop == "aligned":
        return align(image, face.landmarks)
    pixels = box_crop(torch.tensor(image).permute(2, 0, 1)[None], face.box)
    return None if pixels is None else pixels[0].permute(1, 2, 0).round().byte().numpy()


def box_crop(images, box):
    """The published crop: a box of whole pixels, stretched to 112 x 112 (bilinear, without antialiasing).

    Args:
        images: (N, C, H, W), uint8 or float. box: x1, y1, x2, y2 in pixels, cut off at the image's edge.

    Returns:
        (N, C, 112, 112) float with gradient to ``images``; None where less than two pixels are inside.
    """
    height, width = images.shape[-2:]
    left, top = max(0, int(box[0])), max(0, int(box[1]))
    right, bottom = min(width, int(box[2])), min(height, int(box[3]))
    if right - left < 2 or bottom - top < 2:
        return None
    piece = images[:, :, top:bottom, left:right]
    piece = piece if piece.is_floating_point() else piece.float()
    return functional.interpolate(piece, (ARCFACE_SIZE, ARCFACE_SIZE), mode="bilinear")


def choose_face(faces, image_size, policy="largest"):
    """One face of several, or None.

    Args:
        faces: list of :class:`Face`.
        image_size: (height, width) in pixels.
        policy: "largest" box, "central" (box centre nearest the image's centre), or "refuse" (None when
            there is more than one).
    """
    if policy not in ("largest", "central", "refuse"):
        raise ValueError(f"unknown policy {policy!r}; one of largest, central, refuse")
    if not faces or (policy == "refuse" and len(faces) > 1):
        return None
    if policy == "largest":
        return max(faces, key=lambda face: face.area)
    centre = (np.array(image_size[::-1], dtype=np.float64) - 1) / 2
    return min(faces, key=lambda face: np.linalg.norm(face.box.reshape(2, 2).mean(0) - centre))


class FaceAnalyser:
    """Detector and recogniser of an insightface pack, on batches of images.

    Args:
        pack: folder of ONNX files, or the name of one under ~/.insightface/models; never downloaded.
        det_size: side in pixels of the square that a photo is scaled to for detection (a multiple of 32).
            None: photos up to 640 pixels keep their size, larger ones are scaled down to 640. Scaling a tight
            face far up makes detectors invent a second face.
        threshold: lowest detection score kept.
        pad: black margin added to each side before detection, as a fraction of that side; 0.5 is the
            published value for faces that fill the image. Coordinates stay those of the photo.
        batch_size: images per network call, where the network takes batches.
        device: "auto" (CUDA where onnxruntime has it), "cpu", "cuda" or "cuda:1", also as torch.device.
    """

    def __init__(self, pack, det_size=None, threshold=0.5, pad=0.0, batch_size=32, device="auto"):
        if det_size is not None and (det_size < 32 or det_size % 32):
            raise UserError(f"det_size: {det_size} is no multiple of 32; use for example 128, 320 or 640")
        self.models = pack_models(pack)
        self.det_size, self.threshold, self.pad, self.batch_size = det_size, threshold, pad, batch_size
        self.detector = open_network(self.models["detection"], device)
        self.recogniser = open_network(self.models["recognition"], device)
        outputs = self.detector.session.get_outputs()
        if len(outputs) not in LAYOUTS:
            raise UserError(
                f"{self.models['detection']}: a detector without five landmarks ({len(outputs)} "
                "outputs); use one with landmarks, such as det_10g.onnx or scrfd_10g_bnkps.onnx"
            )
        self.strides, self.anchors = LAYOUTS[len(outputs)]
        self.batched_outputs = len(outputs[0].shape) == 3
        self._try_out()

    def _try_out(self):
        """Refuse networks that fail on one black picture, before any work is done."""
        black = np.zeros((1, ARCFACE_SIZE, ARCFACE_SIZE, 3), np.uint8)
        for task, run in (("detection", self.detect), ("recognition", self.embed)):
            try:
                run(black)
            except UserError:
                raise
            except Exception as error:  # outputs can be of any number and shape
                raise UserError(
                    f"{self.models[task]}: does not work as a {task} network ({one_line(error)[:160]}); "
                    "use another pack"
                ) from error

    def detect(self, images):
        """For each uint8 RGB image its list of :class:`Face`, the largest first; an empty list for none."""
        canvases = [self._canvas(image) for image in images]
        groups = {}
        for index, (canvas, _, _) in enumerate(canvases):
            groups.setdefault(canvas.shape, []).append(index)
        found = [None] * len(images)
        size = self.batch_size if self.batched_outputs and not fixed_batch(self.detector) else 1
        for indices in groups.values():
            for start in range(0, len(indices), size):
                chunk = indices[start : start + size]
                outputs = self._run(self.detector, np.stack([canvases[index][0] for index in chunk]))
                for place, index in enumerate(chunk):
                    one = [output[place] if self.batched_outputs else output for output in outputs]
                    _, scale, offset = canvases[index]
                    try:
                        found[index] = self._decode(one, canvases[index][0].shape, scale, offset)
                    except (ValueError, IndexError, AttributeError) as error:
                        reason = f"its outputs do not fit together ({one_line(error)[:160]})"
                        raise UserError(f"{self.models['detection']}: {reason}; use another pack") from error
        return found

    def embed(self, crops):
        """Embeddings float32 (N, D), not normalised, of aligned uint8 RGB crops (N, 112, 112, 3)."""
        size = 1 if fixed_batch(self.recogniser) else self.batch_size
        chunks = [self._run(self.recogniser, crops[i : i + size])[0] for i in range(0, len(crops), size)]
        if chunks:
            return np.concatenate(chunks).reshape(len(crops), -1)
        return np.zeros((0, self.recogniser.session.get_outputs()[0].shape[-1]), np.float32)

    def _canvas(self, image):
        """The padded, scaled photo top left on a black canvas, its scale, and the pad offset (x, y)."""
        image, shrunk = reduced(image, MAX_PADDED / (1 + 2 * self.pad) ** 2)
        height, width = image.shape[:2]
        y, x = round(self.pad * height), round(self.pad * width)
        if x or y:
            image = cv2.copyMakeBorder(image, y, y, x, x, cv2.BORDER_CONSTANT, value=(0, 0, 0))
        height, width = image.shape[:2]
        target = self._canvas_size(height, width)
        if self.det_size is None and height <= target[0] and width <= target[1]:
            scaled = image
        else:  # as insightface: the longer side fills the canvas
            factor = min(target[0] / height, target[1] / width)
            scaled = cv2.resize(image, [max(1, int(side * factor + 1e-6)) for side in (width, height)])
        canvas = np.zeros((*target, 3), np.uint8)
        canvas[: scaled.shape[0], : scaled.shape[1]] = scaled
        return canvas, shrunk * scaled.shape[0] / height, (x / shrunk, y / shrunk)

    def _canvas_size(self, height, width):
        """(height, width) of the detector's input for an image."""
        fixed = [side for side in self.detector.session.get_inputs()[0].shape[2:] if isinstance(side, int)]
        if len(fixed) == 2:
            return tuple(fixed)
        if self.det_size is not None:
            return self.det_size, self.det_size
        factor = min(1.0, MAX_CANVAS / max(height, width))
        return tuple(-(-round(side * factor) // 32) * 32 for side in (height, width))

    def _run(self, network, images):
        """Outputs of a network for uint8 RGB images (N, H, W, 3), scaled as insightface scales them."""
        session = network.session
        blob = (images.transpose(0, 3, 1, 2).astype(np.float32) - network.input_mean) / network.input_std
        try:
            return session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(blob, np.float32)})
        except Exception as error:  # onnxruntime raises its own kinds, and too little memory looks like any
            raise UserError(
                f"{network.model_file}: fails on {len(images)} pictures of {images.shape[2]} x "
                f"{images.shape[1]} ({one_line(error)[-160:]}); lower batch_size or use another pack"
            ) from error

    def _decode(self, outputs, canvas_shape, scale, offset):
        """Faces in photo coordinates from one image's outputs: scores, box distances, landmark offsets."""
        levels = len(self.strides)
        scores, boxes, points = [], [], []
        for level, stride in enumerate(self.strides):
            score = outputs[level].reshape(-1)
            keep = np.flatnonzero(score >= self.threshold)
            columns = canvas_shape[1] // stride
            cell = keep // self.anchors
            centre = np.stack([cell % columns, cell // columns], 1) * float(stride)
            distance = outputs[level + levels].reshape(-1, 4)[keep] * stride
            scores.append(score[keep])
            boxes.append(np.hstack([centre - distance[:, :2], centre + distance[:, 2:]]))
            points.append(centre[:, None] + outputs[level + 2 * levels].reshape(-1, 5, 2)[keep] * stride)
        scores, boxes = np.concatenate(scores), np.concatenate(boxes) / scale
        points = np.concatenate(points) / scale - np.array(offset)
        order = np.argsort(-scores, kind="stable")
        kept = order[self.detector.nms(np.column_stack([boxes, scores])[order])] if len(order) else order
        boxes = (boxes - np.tile(offset, 2)).astype(np.float32)
        # Landmarks in a single point, or nowhere, allow no alignment: no face at all.
        kept = [i for i in kept if np.isfinite(boxes[i]).all() and 0 < np.ptp(points[i], 0).max() < np.inf]
        faces = [Face(boxes[i], points[i].astype(np.float32), float(scores[i])) for i in kept]
        return sorted(faces, key=lambda face: -face.area)


def reduced(image, most):
    """(image, 1.0), or if it has more than ``most`` pixels a smaller one and its scale."""
    factor = (most / (image.shape[0] * image.shape[1])) ** 0.5
    if factor >= 1:
        return image, 1.0
    small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    return small, small.shape[0] / image.shape[0]


def fixed_batch(network):
    """Whether an ONNX network was exported for one image at a time."""
    return network.session.get_inputs()[0].shape[0] == 1
