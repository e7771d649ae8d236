"""Families of base models, one class each: their networks, and the conditioning of their prompts.

This is the one place that knows in what Stable Diffusion 1, 2 and XL differ.
"""

import contextlib
import functools

import torch

from id_booth.diffusion.base_files import INDEX, published_name, read_settings, source_fingerprint
from id_booth.diffusion.conditioning import Conditioning, concatenated
from utils.errors import UserError

TEXT_TARGETS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "out_proj",
)  # what gets an adapter where text encoders are trained


class BaseModel:
    """A latent diffusion model: frozen networks, noise schedule, and the conditioning of its prompts.

    Args:
        pipe: a diffusers pipeline of the class ``pipeline``, complete.
        source: the folder or file (Path) or hub id (str) it is from; revision: of the hub repository.

    ``parts`` maps the name of each network that can carry a LoRA to it, ``text_encoders`` those among them
    that read prompts; ``name`` may be published. A family is a subclass, which says what its networks are
    like: ``family`` is its name, ``linear_projections`` and ``pipeline`` are what its own config files say,
    ``text_width`` is that of the texts its published models attend to; ``kohya_prefixes``,
    ``original_names`` and ``kohya_version`` are what kohya's LoRA files call layers and base
    (``lora_names``).
    """

    family, pipeline, linear_projections = "Stable Diffusion", "StableDiffusionPipeline", None
    text_width, kohya_version = 0, ""
    pipeline_options = {"safety_checker": None, "requires_safety_checker": False, "feature_extractor": None}
    text_parts = ("text_encoder",)
    kohya_prefixes = {"unet": "lora_unet", "text_encoder": "lora_te"}
    original_names = False

    def __init__(self, pipe, source, revision=None):
        self.pipe, self.source, self.revision = pipe, source, revision
        self.name = published_name(source)
        self.unet, self.vae, self.text_encoder = pipe.unet, pipe.vae, pipe.text_encoder
        self.text_encoders = {part: getattr(pipe, part) for part in self.text_parts}
        self.tokenizers = [getattr(pipe, name) for name in tokenizer_parts(self)]
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

    def encode(self, prompts, side=None):
        """The Conditioning of N prompts, in the text encoder's dtype, on the UNet's device.

        Every text is encoded once, on its own, as a plain pipeline call does, and kept until a LoRA changes
        the text encoder (:meth:`forget_prompts`). UserError for a prompt longer than the text encoder takes.

        Args:
            prompts: texts. side: of the square pictures in pixels; None for the model's own size.
        """
        for prompt in dict.fromkeys(prompts):
            if prompt not in self.conditionings:
                self.check_prompt(prompt)
                self.conditionings[prompt] = self.encode_anew(prompt)
        return self.sized(concatenated([self.conditionings[prompt] for prompt in prompts]), side)

    @torch.no_grad()
    def encode_anew(self, prompt):
        """The Conditioning of one prompt."""
        return Conditioning(self.pipe.encode_prompt(prompt, self.device, 1, False)[0])

    def tokens(self, prompts):
        """Token ids of N prompts for each of E text encoders, (N, E, L) int64, on the device."""
        options = {"padding": "max_length", "return_tensors": "pt"}
        ids = [
            tokenizer(list(prompts), max_length=tokenizer.model_max_length, **options).input_ids
            for tokenizer in self.tokenizers
        ]
        return torch.stack(ids, 1).to(self.device)

    def encode_tokens(self, tokens, side=None):
        """The Conditioning of token ids (N, E, L), with gradient to adapters of the text encoders.

        Nothing is kept. ``side``: as for :meth:`encode`.
        """
        return Conditioning(self.text_encoder(tokens[:, 0])[0])

    def sized(self, conditioning, side):
        """A Conditioning with what the UNet is told of the size of the pictures; ``side`` as above."""
        return conditioning

    def forget_prompts(self):
        """The text encoder has changed: encode prompts anew."""
        self.conditionings.clear()

    def check_prompt(self, prompt):
        """Refuse a prompt that a text encoder would cut off."""
        for tokenizer, encoder in zip(self.tokenizers, self.text_encoders.values(), strict=True):
            count = len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
            limit = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
            if count > limit:
                raise UserError(
                    f"prompt {prompt!r}: {count} tokens, the text encoder takes {limit}; shorten it"
                )

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
    text_width, kohya_version = 768, "sd_v1"


class StableDiffusion2(BaseModel):
    """Stable Diffusion 2.x, of noise or velocity prediction."""

    family, linear_projections = "Stable Diffusion 2.x", True
    text_width, kohya_version = 1024, "sd_v2"


class StableDiffusionXL(BaseModel):
    """Stable Diffusion XL (Podell et al. 2023): two text encoders, and a UNet that is told a picture's size.

    In training it is told what it is told in sampling: a whole picture of the size that is made.
    """

    family, pipeline, linear_projections = "Stable Diffusion XL", "StableDiffusionXLPipeline", True
    text_width, kohya_version = 2048, "sdxl_base_v1-0"
    pipeline_options = {"feature_extractor": None, "image_encoder": None, "add_watermarker": False}
    text_parts = ("text_encoder", "text_encoder_2")
    kohya_prefixes = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    original_names = True

    def __init__(self, *arguments):
        super().__init__(*arguments)
        if self.vae.dtype == torch.float16 and self.vae.config.force_upcast:
            self.vae.float()  # it overflows

    @torch.no_grad()
    def encode_anew(self, prompt):
        """From the encoders' last layer but one, and pooled; zeros for no text, where its config says so."""
        text, _, pooled, _ = self.pipe.encode_prompt(prompt, None, self.device, 1, False)
        conditioning = Conditioning(text, {"text_embeds": pooled})
        blank = not prompt and self.pipe.config.force_zeros_for_empty_prompt
        return conditioning.map(torch.zeros_like) if blank else conditioning

    def encode_tokens(self, tokens, side=None):
        """As :meth:`encode_anew`, with gradient."""
        encoders = zip(self.text_encoders.values(), tokens.unbind(1), strict=True)
        outputs = [encoder(ids, output_hidden_states=True) for encoder, ids in encoders]
        text = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        return self.sized(Conditioning(text, {"text_embeds": outputs[-1].text_embeds}), side)

    def sized(self, conditioning, side):
        """``time_ids`` (N, 6): original size, no crop, size wanted."""
        side = side or self.unet.config.sample_size * self.latent_factor
        size = conditioning.text.new_tensor([[side, side, 0, 0, side, side]]).expand(len(conditioning), -1)
        return Conditioning(conditioning.text, conditioning.added | {"time_ids": size})


FAMILIES = (StableDiffusion1, StableDiffusion2, StableDiffusionXL)


def tokenizer_parts(family):
    """The names of a family's tokenizers in a pipeline, in the order of its text encoders."""
    return [part.replace("text_encoder", "tokenizer") for part in family.text_parts]


def family_by_width(width):
    """The family whose published models attend to texts of this width; None where none does."""
    return next((family for family in FAMILIES if family.text_width == width), None)


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
