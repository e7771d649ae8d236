"""The base model and its families: networks, noise schedule, and the conditioning of its prompts.

Where it comes from is in ``base_files``, LoRAs in it in ``lora_files``, denoising in ``denoising``.
"""

import contextlib
import functools
from pathlib import Path

import torch

from id_booth.diffusion.base_files import (
    INDEX,
    find_base_model,
    loading_trouble,
    published_name,
    read_settings,
    source_fingerprint,
    weight_files,
)
from id_booth.diffusion.conditioning import Conditioning, concatenated
from utils.errors import UserError

PREDICTIONS = ("epsilon", "v_prediction", "sample")


class BaseModel:
    """A latent diffusion model: frozen networks, noise schedule, and the conditioning of its prompts.

    Args:
        pipe: a diffusers pipeline of the class ``pipeline``, complete.
        source: the folder or file (Path) or hub id (str) it is from; revision: of the hub repository.

    ``parts`` maps the name of each network that can carry a LoRA to it, ``text_encoders`` those among them
    that read prompts; ``name`` may be published. A family is a subclass, which says what its networks are
    like: ``family`` is its name, ``linear_projections`` and ``pipeline`` are what its own config files say,
    ``kohya_prefixes`` and ``original_names`` what kohya's LoRA files call its layers (``lora_names``).
    """

    family, pipeline, linear_projections = "Stable Diffusion", "StableDiffusionPipeline", None
    pipeline_options = {"safety_checker": None, "requires_safety_checker": False, "feature_extractor": None}
    text_parts = ("text_encoder",)
    kohya_prefixes = {"unet": "lora_unet", "text_encoder": "lora_te"}
    original_names = False

    def __init__(self, pipe, source, revision=None):
        self.pipe, self.source, self.revision = pipe, source, revision
        self.name = published_name(source)
        self.unet, self.vae, self.text_encoder = pipe.unet, pipe.vae, pipe.text_encoder
        self.text_encoders = {part: getattr(pipe, part) for part in self.text_parts}
        self.parts = {"unet": pipe.unet, **self.text_encoders}
        self.schedule = pipe.scheduler.config
        self.conditionings = {}
        self.offloaded = ()
        self.undo = contextlib.ExitStack()  # what brings the base's own weights back (lora_files)

    @functools.cached_property
    def fingerprint(self):
        """See ``base_files.base_model_fingerprint``."""
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


class StableDiffusion1(BaseModel):
    """Stable Diffusion 1.x."""

    family, linear_projections = "Stable Diffusion 1.x", False


class StableDiffusion2(BaseModel):
    """Stable Diffusion 2.x, of noise or velocity prediction."""

    family, linear_projections = "Stable Diffusion 2.x", True


FAMILIES = (StableDiffusion1, StableDiffusion2)


def family_of(source, revision=None):
    """The class of FAMILIES that a base model is of, by its own config files; UserError for another kind.

    Args:
        source: from ``find_base_model``; revision: of a hub repository.
    """
    kind = read_settings(source, INDEX, revision).get("_class_name")
    linear = bool(read_settings(source, "unet/config.json", revision).get("use_linear_projection"))
    for family in FAMILIES:
        if (kind, linear) == (family.pipeline, family.linear_projections):
            return family
    known = ", ".join(family.family for family in FAMILIES)
    raise UserError(f"{source}: a model of the kind {kind}; these are read: {known}")


def load_base_model(path_or_id, dtype=torch.float32, device="cpu", revision=None):
    """A base model in evaluation mode, frozen, without safety checker.

    Args:
        path_or_id: a folder in diffusers' layout or a single file (relative to the working folder or to the
            project), or a hub id.
        dtype: torch dtype of the weights.
        device: where the parts go.
        revision: branch, tag or commit of a hub repository.

    Returns:
        :class:`BaseModel` of a family.

    Raises:
        UserError: no such folder, not a model of a known family, broken weights, hub id not to be had.
    """
    source = find_base_model(path_or_id)
    family = family_of(source, revision)
    with quiet_libraries():
        pipe = open_pipeline(family, source, revision, dtype)
    check_parts(pipe, family, source)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.vae, *(getattr(pipe, part) for part in ("unet", *family.text_parts))):
        part.requires_grad_(False).eval()
    return family(pipe.to(device), source, revision)


def open_pipeline(family, source, revision, dtype):
    """The diffusers pipeline of a base model; UserError when it does not load."""
    # Imported here: the import itself already talks about packages this project does without.
    import diffusers

    pipeline, options = getattr(diffusers, family.pipeline), {"dtype": dtype, **family.pipeline_options}
    try:
        if isinstance(source, Path) and source.is_file():
            settings = str(source.with_suffix(""))
            return pipeline.from_single_file(str(source), config=settings, local_files_only=True, **options)
        options |= {"revision": revision, "use_safetensors": True}
        if isinstance(source, Path):
            return pipeline.from_pretrained(str(source), variant=weight_files(source)[1], **options)
        return from_hub(pipeline, source, options)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file, or no network, leads to
        raise UserError(loading_trouble(source, error)) from error


def from_hub(pipeline, name, options):
    """The pipeline of a hub repository, which may have its weights in the variant "fp16" alone."""
    try:
        return pipeline.from_pretrained(name, **options)
    except Exception:
        with contextlib.suppress(Exception):
            return pipeline.from_pretrained(name, variant="fp16", **options)
        raise


def check_parts(pipe, family, source):
    """Refuse pipelines whose parts are not those of their family, or whose schedule cannot be trained."""
    tokenizers = [part.replace("text_encoder", "tokenizer") for part in family.text_parts]
    for part in ("unet", "vae", *family.text_parts, *tokenizers, "scheduler"):
        if getattr(pipe, part, None) is None:
            raise UserError(f"{source}: has no {part}; give a complete {family.family} model")
    width = sum(getattr(pipe, part).config.hidden_size for part in family.text_parts)
    if width != (expected := pipe.unet.config.cross_attention_dim):
        raise UserError(f"{source}: text encoder width {width}, UNet takes {expected}; give a matching model")
    if pipe.unet.config.in_channels != pipe.vae.config.latent_channels:
        raise UserError(f"{source}: its UNet takes more than latents (for inpainting?); give a plain model")
    prediction = pipe.scheduler.config.get("prediction_type")
    if prediction not in PREDICTIONS:
        raise UserError(f"{source}: predicts {prediction!r}; read are models of {', '.join(PREDICTIONS)}")
    if prediction == "epsilon" and pipe.scheduler.config.get("rescale_betas_zero_snr"):
        raise UserError(
            f"{source}: its schedule ends in pure noise, where a prediction of the noise says nothing; set "
            "rescale_betas_zero_snr to false in its scheduler_config.json"
        )


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
