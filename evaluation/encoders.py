"""Image encoders whose features the diversity metrics compare; weights lie in local folders.

An encoder has `name` (for the report), `identifier` (changes whenever features would), `licence`, `of_faces`
(True: aligned 112-pixel crops, False: whole images, None: as the config says) and is called on uint8 RGB
images -> float32 (N, D).
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from arcface_files.extraction import batches
from configs.evaluation_config import SOURCES
from evaluation.attributes import AttributeClassifier
from evaluation.feature_cache import FeatureCache
from utils.devices import device_of
from utils.errors import UserError
from utils.files import sha256_file
from utils.images import load_image

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CLIP_LICENCE = "MIT (CLIP)"
THUMBNAIL = 16


class PretrainedEncoder:
    """A transformers network from a local folder: bicubic to `size`, `statistics` of its input, float32.

    Args:
        folder: config.json and weights.
    """

    of_faces = None

    def __init__(self, folder):
        self.network = self.load(folder)
        self.name = f"{self.title} {Path(folder).name}"
        self.identifier = f"{self.kind}|{folder_hash(folder)}|{self.size} bicubic"

    @torch.inference_mode()
    def __call__(self, images):
        pixels = torch.stack([normalised(image, self.size, *self.statistics) for image in images])
        return self.features(pixels.to(device_of(self.network))).float().cpu().numpy()


class DinoV2Encoder(PretrainedEncoder):
    """The class token of DINOv2 after its last layer norm, as dgm-eval takes it."""

    kind, title, licence = "dinov2", "DINOv2", "Apache-2.0 (DINOv2)"
    size, statistics = 224, IMAGENET

    def load(self, folder):
        from transformers import Dinov2Model

        return load_pretrained(Dinov2Model, folder, SOURCES["dinov2_folder"])

    def features(self, pixels):
        return self.network(pixels).pooler_output


class ClipEncoder(PretrainedEncoder):
    """CLIP's class token after its last layer norm and before the projection, as dgm-eval takes it."""

    kind, title, licence, source = "clip pooled", "CLIP", CLIP_LICENCE, SOURCES["clip_folder"]
    statistics = CLIP

    def load(self, folder):
        from transformers import CLIPVisionModelWithProjection

        network = load_pretrained(CLIPVisionModelWithProjection, folder, self.source, ignore=CLIP_TEXT)
        self.size = network.config.image_size
        return network

    def features(self, pixels):
        return self.network.vision_model(pixels).pooler_output


class CmmdEncoder(ClipEncoder):
    """CLIP's projected image embedding, which CMMD is defined on."""

    kind, source = "clip", SOURCES["cmmd_folder"]

    def features(self, pixels):
        return self.network(pixels).image_embeds


class MaeEncoder(PretrainedEncoder):
    """The class token of a masked autoencoder's encoder, nothing masked, as dgm-eval takes it."""

    kind, title, licence = "mae", "MAE", "CC BY-NC 4.0 (MAE)"
    size, statistics = 224, IMAGENET

    def load(self, folder):
        from transformers import ViTMAEModel

        network = load_pretrained(ViTMAEModel, folder, SOURCES["mae_folder"], ignore=MAE_DECODER)
        network.config.mask_ratio = 0.0
        return network

    def features(self, pixels):
        patches = self.network.embeddings.patch_embeddings.num_patches
        order = torch.arange(patches, device=pixels.device).expand(len(pixels), -1) / patches
        return self.network(pixels, noise=order).last_hidden_state[:, 0]


# The text half of a CLIP checkpoint and the decoder of MAE's, of no use to the encoders.
CLIP_TEXT = ("text_model.", "text_projection", "logit_scale")
MAE_DECODER = ("decoder.",)


class RecogniserEncoder:
    """Embeddings of a recogniser on aligned crops: identity and all that disturbs it."""

    licence, of_faces = "that of the pack or file", True

    def __init__(self, recogniser):
        path = Path(recogniser.models["recognition"])
        self.recogniser = recogniser
        self.name = f"recogniser {path.parent.name}/{path.name}"
        self.identifier = f"recogniser|{sha256_file(path)}"

    def __call__(self, images):
        return self.recogniser.embed(np.stack(images))


def small_picture(image):
    """A uint8 RGB image as 16 x 16 pixels, each the mean of its share; one of that size as it is."""
    return np.asarray(Image.fromarray(image).resize((THUMBNAIL, THUMBNAIL), Image.BOX))


class PixelEncoder:
    """16 x 16 RGB thumbnails: no network, so it sees layout and colour only. For want of anything better."""

    licence, of_faces, name, identifier = "none needed", None, "16 x 16 pixels", "pixels|16 box"

    def __call__(self, images):
        # Around zero, so that a black picture has a direction too.
        return np.stack([np.float32(small_picture(image)).ravel() / 127.5 - 1 for image in images])


# Encoders with weights: the field of the config that says where they lie, the class, where to get them.
FROM_FILES = {
    "dinov2": ("dinov2_folder", DinoV2Encoder, SOURCES["dinov2_folder"]),
    "clip": ("clip_folder", ClipEncoder, SOURCES["clip_folder"]),
    "mae": ("mae_folder", MaeEncoder, SOURCES["mae_folder"]),
    "cmmd": ("cmmd_folder", CmmdEncoder, SOURCES["cmmd_folder"]),
    "attributes": ("attributes_file", AttributeClassifier, SOURCES["attributes_file"]),
}


def make_encoder(kind, path=None, recogniser=None, device="cpu", crops=False):
    """An encoder by the name a config gives it: dinov2, clip, mae, cmmd, recogniser, attributes, or pixels.

    Args:
        path: of its weights. recogniser: of "recogniser", with `embed` and `models` of a FaceAnalyser.
        device: of dinov2, clip, mae, cmmd; the recogniser has its own, the classifier of attributes is small.
        crops: aligned crops for those that take either, else whole images.

    Raises:
        UserError: unknown kind, or a folder or file is missing (the message says where to get it).
    """
    if kind == "pixels":
        encoder = PixelEncoder()
    elif kind == "recogniser":
        encoder = RecogniserEncoder(recogniser)
    elif kind not in FROM_FILES:
        raise UserError(f"encoders: {kind!r} is unknown; one of {', '.join(FROM_FILES)}, recogniser, pixels")
    else:
        field, encoder_class, source = FROM_FILES[kind]
        if path is None:
            raise UserError(f"{field}: the encoder {kind} needs its weights; give {source}")
        encoder = encoder_class(path)
    if isinstance(encoder, PretrainedEncoder):
        encoder.network.to(device)
    if encoder.of_faces is None:
        encoder.of_faces = crops
    return encoder


def load_pretrained(model_class, folder, source, ignore=()):
    """A transformers model from a local folder in eval mode, every weight accounted for.

    Raises:
        UserError: no such folder, damaged, or weights missing or left over (but for prefixes in `ignore`).
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no model folder (config.json); get {source}")
    try:
        network, info = model_class.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{folder}: cannot be loaded ({reason}); get {source}") from error
    keys = [str(key) for key in (*info["missing_keys"], *info["unexpected_keys"])]
    wrong = [key for key in keys if not key.startswith(tuple(ignore))]
    wrong += [str(key) for key in info.get("mismatched_keys", ())]
    if wrong:
        raise UserError(f"{folder}: weights do not fit {model_class.__name__} ({wrong[0]}); get {source}")
    return network.eval().requires_grad_(False)


def folder_hash(folder):
    """Hash of a model folder's weights and config, by content."""
    suffixes = {".safetensors", ".bin", ".json"}
    files = [path for path in sorted(Path(folder).iterdir()) if path.suffix in suffixes and path.is_file()]
    return hashlib.sha256("".join(sha256_file(path) for path in files).encode()).hexdigest()


def normalised(image, size, mean, std):
    """A uint8 RGB image as float (3, size, size): shorter side `size`, bicubic, centre crop."""
    height, width = image.shape[:2]
    factor = size / min(height, width)
    target = max(size, round(width * factor)), max(size, round(height * factor))
    resized = np.asarray(Image.fromarray(image).resize(target, Image.BICUBIC), np.float32) / 255
    top, left = (resized.shape[0] - size) // 2, (resized.shape[1] - size) // 2
    crop = (resized[top : top + size, left : left + size] - mean) / np.array(std, np.float32)
    return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1), np.float32))


def encode_set(faces, encoder, cache_folder=None, batch_size=32):
    """Features of a FaceSet by an encoder: (features (N, D) float32, labels (N,)).

    Of the aligned faces for an encoder of faces, else of every readable image, face or not.
    """
    cache = FeatureCache(cache_folder, f"{encoder.identifier}")
    desc = f"features of {faces.name}"
    if encoder.of_faces:
        rows = cache.fetch(faces.crop_keys, lambda p: encoder(list(faces.crops(p))), batch_size, desc)
        return rows, faces.labels
    images, keys = faces.readable, [key for key in faces.hashes if key is not None]
    rows = cache.fetch(keys, lambda p: encode_files(encoder, [images.paths[k] for k in p]), batch_size, desc)
    return rows, np.array(images.labels, dtype=str)


def encode_files(encoder, paths):
    """Features of image files; of large ones fewer are decoded at a time."""
    parts = [encoder([load_image(path) for path in batch]) for batch in batches(paths, len(paths))]
    return np.concatenate(parts)
