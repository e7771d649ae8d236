"""The training step on another device than the CPU, without one: precisions, devices, and no waiting.

Tensors of torch's "meta" device have shape, dtype and device but no values. So a step whose networks lie
there proves that nothing is on the wrong device or in the wrong precision, and that nothing asks the device
for a value, which on a GPU would be a wait.
"""

from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPTextConfig, CLIPTextModel

from configs.train_config import TrainConfig
from id_booth.diffusion.conditioning import Conditioning
from id_booth.diffusion.families import BaseModel
from id_booth.training import cohort as cohort_module
from id_booth.training import frozen_models
from id_booth.training.cohort import Cohort
from id_booth.training.frozen_models import FrozenModels
from id_booth.training.identity_branch import IdentityBranch
from id_booth.training.photos import Photos, alignment_matrices, face_windows
from tests.tiny_base import make_tokenizer
from utils.devices import DTYPES

META = torch.device("meta")
WIDTH, DIM, SIDE = 32, 16, 16
LANDMARKS = torch.tensor([[44.0, 52], [84, 52], [64, 72], [48, 92], [80, 92]])


class NothingWaits(TorchDispatchMode):
    """Fails where an operation mixes devices, or brings a value from the device to the CPU."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        tensors = [leaf for leaf in tree_leaves((arguments, options)) if isinstance(leaf, torch.Tensor)]
        kinds = {tensor.device.type for tensor in tensors if tensor.numel() > 1}
        copies = "_to_copy" in function.name() or "copy_" in function.name()
        assert copies or len(kinds) < 2, f"{function.name()} mixes {kinds}"
        result = function(*arguments, **(options or {}))
        left = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if "meta" in kinds:
            assert all(tensor.device == META for tensor in left), f"{function.name()} waits for the device"
        return result


def half_base(dtype):
    """A thin base model in SD 2.1's form, all of it on the meta device."""
    with META:
        unet = UNet2DConditionModel(
            sample_size=SIDE,
            block_out_channels=(WIDTH, WIDTH),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=2,
            norm_num_groups=4,
            use_linear_projection=True,
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=2,
        )
        text = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=WIDTH,
                intermediate_size=WIDTH,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=48,
            )
        )
    parts = {"unet": unet, "vae": vae, "text_encoder": text}
    for part in parts.values():
        part.to(dtype).requires_grad_(False).eval()
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    base = BaseModel(SimpleNamespace(**parts, tokenizer=make_tokenizer(), scheduler=scheduler), "thin/base")
    base.encode_anew = lambda prompt: Conditioning(torch.empty(1, 48, WIDTH, dtype=dtype, device=META))
    return base


def photos(name, count, spread):
    """Photos without pixels; their faces' windows differ in size with ``spread``."""
    centre = LANDMARKS.mean(0)
    landmarks = torch.stack([(LANDMARKS - centre) * (1 + spread * i) + centre for i in range(count)])
    matrices = alignment_matrices(landmarks.double().numpy())
    posterior = torch.zeros(2, count, 4, SIDE, SIDE)
    known = torch.ones(count, dtype=torch.bool)
    windows = face_windows(matrices, SIDE, 8, 1)
    return Photos(name, [None] * count, None, *posterior, torch.zeros(count, DIM), known, matrices, windows)


@pytest.mark.parametrize("people", [1, 16])
@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize(
    "precision, options",
    [
        ("no", {}),
        ("bf16", {"use_dora": True}),
        ("fp16", {"snr_gamma": 5.0}),
        ("bf16", {"train_text_encoder": True}),
        ("fp16", {"identity_decode": "full"}),
        ("bf16", {"gradient_accumulation_steps": 2, "gradient_checkpointing": True}),
    ],
)
def test_a_step_on_another_device(monkeypatch, people, lean, precision, options):
    dtype = DTYPES[precision]
    config = TrainConfig(
        resolution=8 * SIDE,
        mixed_precision=precision,
        lean_layers=lean,
        train_batch_size=2,
        max_train_steps=2,
        **{"identity_decode": "face", "face_crop": "aligned", "validation_images": 0, **options},
    )
    monkeypatch.setattr(frozen_models, "load_base_model", lambda *_: half_base(dtype))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    # What scales losses and fuses updates exists for real devices only; both are tested on the CPU.
    no_scaler = torch.amp.GradScaler("cpu", enabled=False)
    monkeypatch.setattr(cohort_module.torch.amp, "GradScaler", lambda *_, **__: no_scaler)
    monkeypatch.setattr(cohort_module, "make_optimizer", lambda _, weights: torch.optim.SGD(weights, lr=0.1))
    models = FrozenModels(config, META)
    models.set_cohort_size(people)
    with META:
        recogniser = torch.nn.Sequential(torch.nn.Conv2d(3, DIM, 112), torch.nn.Flatten()).requires_grad_(
            False
        )
    recogniser.embedding_size = DIM
    branch = IdentityBranch(config, models.decoder(), models.base.latent_factor, recogniser)
    everybody = [photos(f"ID_{i}", 2, 0.4 * (i % 3)) for i in range(people)]
    cohort = Cohort(config, "ID-Booth", models, branch, everybody, photos("class", 3, 0), torch.zeros(5, DIM))
    for name in ("draw", "band_counts"):  # on the CPU, where they cost no waiting
        monkeypatch.setattr(cohort, name, outside(getattr(cohort, name)))
    with NothingWaits():
        terms, bands = cohort.step(0)
    assert terms.device == META and terms.shape == (people, 4) and terms.dtype == torch.float32
    assert cohort.adapters.weights.grad.dtype == torch.float32 and bands[..., 1].sum() > 0
    decoder = next(models.vae.decoder.parameters()).dtype
    assert decoder == {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.bfloat16}[precision]


def outside(function):
    """The function, outside of the mode that watches."""

    def run(*arguments):
        with torch.utils._python_dispatch._disable_current_modes():
            return function(*arguments)

    return run


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x[torch.arange(3)],
        lambda x: x.cpu(),
        lambda x: x + torch.ones(5),
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.to("cpu", non_blocking=True) + 1,
    ],
)
def test_the_proof_sees_what_it_is_for(mistake):
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)), NothingWaits():
        mistake(torch.empty(5, device=META))
