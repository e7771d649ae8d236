"""Does a sample show what its prompt says? By CLIP score, and by a classifier of attributes."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from arcface_files.extraction import batches
from arcface_files.people import people_in
from configs.evaluation_config import SOURCES
from evaluation.encoders import CLIP, load_pretrained, normalised
from id_booth.prompts import BACKGROUNDS, PROMPTED, published_sample
from utils.devices import device_of
from utils.errors import UserError
from utils.images import load_image


def read_prompts(method_folder):
    """{path relative to the folder: prompt} of a method's metadata.jsonl, or of official file names.

    Raises:
        UserError: a broken metadata.jsonl, or none and no such names.
    """
    path, prompts = Path(method_folder) / "metadata.jsonl", {}
    if not path.is_file():
        if prompts := published_prompts(method_folder):
            return prompts
        raise UserError(f"{path}: not found, so prompts are unknown; inference_id_booth.py writes it")
    for number, line in enumerate(path.read_text("utf-8", "replace").rstrip("\n").split("\n"), start=1):
        try:
            record = json.loads(line)
            prompts[record["file_name"]] = str(record["prompt"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise UserError(f"{path}: line {number} has no file_name and prompt; write it again") from error
    return prompts


def published_prompts(folder):
    """:func:`read_prompts` by the names that the official code gives to samples; {} without such names."""
    files = [file for files in people_in(folder).values() for file in files] if Path(folder).is_dir() else []
    found = {file.relative_to(folder).as_posix(): published_sample(file) for file in files}
    return {name: sample[1] for name, sample in found.items() if sample}


def looks_kept(images, seen, photos, seen_in_photos):
    """How often an image has the looks of its person's photos: what people see, where no prompt says it.

    The looks of a person are what most of the photos show; of a photo itself, what most of the others show.

    Args:
        images, photos: ImageSet. seen, seen_in_photos: of :func:`seen_in` for each.

    Returns:
        dict attribute that is not in PROMPTED -> (kept (N,) bool, labels (N,)), of images of people with
        photos; with "hair" and "skin" among them also "kept": both.
    """
    names = [name for name in next(iter(seen), {}) if name not in PROMPTED]
    own = {}
    for path, label, one in zip(photos.paths, photos.labels, seen_in_photos, strict=True):
        own.setdefault(label, {})[path] = one
    rows, kept = [], []
    for path, label, one in zip(images.paths, images.labels, seen, strict=True):
        others = [shown for photo, shown in own.get(label, {}).items() if photo != path]
        if others:
            rows.append(label)
            usual = {name: Counter(shown[name] for shown in others).most_common(1)[0][0] for name in names}
            kept.append([one[name] == usual[name] for name in names])
    kept, rows = np.array(kept, bool).reshape(len(rows), len(names)), np.array(rows, dtype=str)
    result = {name: (kept[:, i], rows) for i, name in enumerate(names)}
    if {"hair", "skin"} <= result.keys():
        result = {"kept": (result["hair"][0] & result["skin"][0], rows)} | result
    return result


def prompts_or_nothing(folder):
    """The prompts of a method folder, or {} where there is no metadata: pictures are shown without."""
    try:
        return read_prompts(folder)
    except UserError:
        return {}


def prompts_of(images):
    """The prompt of each image of an ImageSet (None where metadata.jsonl does not name it)."""
    prompts = read_prompts(images.folder)
    return [prompts.get(path.relative_to(images.folder).as_posix()) for path in images.paths]


def parse_prompt(prompt):
    """What a prompt of the published grammar promises: dict of gender, age, background, pose, as far as said.

    "face side-portrait photo of old male sks person, forest background" -> male, old, forest, side.
    """
    words = prompt.replace(",", " ").split()
    said = {"gender": next((word for word in words if word in ("male", "female")), None)}
    said["age"] = next((word for word in words if word in ("young", "middle-aged", "old")), None)
    places = (place for place in BACKGROUNDS if place and f"{place} background" in prompt)
    said["background"] = next(places, None)
    pose = {"portrait": "frontal", "side-portrait": "side"}
    said["pose"] = next((pose[word] for word in words if word in pose), None)
    return {key: value for key, value in said.items() if value is not None}


class ClipScorer:
    """CLIP score of Hessel et al. (EMNLP 2021) as commonly reported: 100 * max(cosine(image, text), 0)."""

    def __init__(self, folder, device="cpu"):
        from transformers import CLIPModel, CLIPTokenizer

        self.network = load_pretrained(CLIPModel, folder, SOURCES["clip_folder"]).to(device)
        self.name = f"CLIP {Path(folder).name}"
        try:
            self.tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{folder}: no tokenizer (vocab.json, merges.txt); get {SOURCES['clip_folder']}"
            ) from error

    @torch.inference_mode()
    def __call__(self, images, prompts):
        """Scores (N,) float32, 0 to 100, of uint8 RGB images and their prompts."""
        vision = self.network.vision_model.config
        text = self.network.text_model.config
        pixels = torch.stack([normalised(image, vision.image_size, *CLIP) for image in images])
        length = text.max_position_embeddings
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        device = device_of(self.network)
        output = self.network(**tokens.to(device), pixel_values=pixels.to(device))
        cosine = torch.nn.functional.cosine_similarity(output.image_embeds, output.text_embeds)
        return (100 * cosine.clamp(min=0)).cpu().numpy()


def clip_scores(images, scorer, batch_size=16):
    """CLIP scores of every image of an ImageSet with a prompt: (scores (N,), labels (N,))."""
    pairs = [
        (path, label, prompt)
        for path, label, prompt in zip(images.paths, images.labels, prompts_of(images), strict=True)
        if prompt
    ]
    scores, prompts = [np.zeros(0, np.float32)], iter([prompt for _, _, prompt in pairs])
    for batch in batches([path for path, _, _ in pairs], batch_size):
        scores.append(scorer([load_image(path) for path in batch], [next(prompts) for _ in batch]))
    return np.concatenate(scores), np.array([label for _, label, _ in pairs], dtype=str)


def seen_in(images, classifier, batch_size=64):
    """What the classifier sees in each image of an ImageSet: one dict attribute -> class name each."""
    seen = []
    for batch in batches(images.paths, batch_size):
        seen += classifier.predict([load_image(path) for path in batch])
    return seen


def attribute_agreement(images, seen):
    """How often a classifier sees what the prompt says.

    Args:
        images: ImageSet. seen: of :func:`seen_in`.

    Returns:
        dict attribute of PROMPTED -> (right (N,) bool, labels (N,)), over the images whose prompt
        mentions it.
    """
    said = [parse_prompt(prompt) if prompt else {} for prompt in prompts_of(images)]
    result = {}
    for name in PROMPTED:
        rows = [i for i, promised in enumerate(said) if name in promised and name in seen[i]]
        right = np.array([seen[i][name] == said[i][name] for i in rows], bool)
        result[name] = right, np.array([images.labels[i] for i in rows], dtype=str)
    return result
