"""The scripts and the training step on a GPU, in each precision, against the CPU's figures.

Without a GPU all but what needs one runs on the CPU, so that no test meets a card for the first time;
GPU_TESTS_DEVICE says otherwise (cpu, on a machine that has one).
"""

import contextlib
import json
import os
import signal
import sys

# The first use of the card reads it; a test below asks for the same bits twice.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers.utils.torch_utils import randn_tensor
from safetensors.torch import load_file

from evaluation import quality
from evaluation.pose_networks import SixDRepNet, sixdrepnet_pose
from fr_training import train_fr
from id_booth.diffusion.denoising import compile_blocks
from id_booth.training.cohort import Cohort
from mini.paths import WEIGHTS
from tests import miniature_runs, test_cohort
from tests.tiny_recognition import tiny_training
from utils.files import read_json
from utils.images import load_image

DEVICE = os.environ.get("GPU_TESTS_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
ON_CARD = DEVICE == "cuda"
PRECISIONS = ("fp32", "bf16", "fp16") if ON_CARD else ("fp32", "bf16")
HALVES = PRECISIONS[1:]
LORA = "pytorch_lora_weights.safetensors"
STEPS = 2
short = pytest.mark.short
needs_card = pytest.mark.skipif(not ON_CARD, reason="needs a GPU")


@pytest.fixture(autouse=True)
def as_before():
    """Scripts set signal handlers, accelerate remembers its first device, one test asks for determinism."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.use_deterministic_algorithms(False)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Lab photos of three people, class images, the miniature's networks; embedded on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("id_booth.sampling.plan.code_version", lambda: "0123abc")
        patch.setattr(sys, "argv", sys.argv)
        root = miniature_runs.make_world(tmp_path_factory.mktemp("gpu") / "world", bundle=True)
        assert miniature_runs.embed_world(root) == 0
        yield root


def train(world, output, *options, device=DEVICE):
    """ID-Booth of everybody in one cohort by train_id_booth.py, all that a real run does; its exit code."""
    given = {
        "device": device,
        "objectives": "ID-Booth",
        "max-train-steps": STEPS,
        "num-class-images": 3,
        "validation-steps": 2,
        "cohort-size": 3,
        "learning-rate": 1e-3,
        "mixed-precision": "no",
        "lora-rank": 4,
        "validation-images": 0,
    }
    words = [str(option) for option in options]
    own = [w for k, v in given.items() if f"--{k}" not in words for w in (f"--{k}", v)]
    try:
        return miniature_runs.train(world, output, "--with-prior-preservation", *own, *words)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def losses(output, name="ID_1"):
    """The losses of each step, by term."""
    lines = (output / "ID-Booth" / name / "train_log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def lora(output, name="ID_1"):
    """What an identity has learned: the up matrices of its last checkpoint, as one vector."""
    *_, last = sorted(
        (output / "ID-Booth" / name).glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[2])
    )
    return torch.cat([value.flatten() for key, value in load_file(last / LORA).items() if ".up." in key])


def cosine(first, second):
    return float(torch.nn.functional.cosine_similarity(first.double(), second.double(), dim=0))


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """The CPU's training in float32; its LoRAs are those that are sampled."""
    output = tmp_path_factory.mktemp("trained")
    assert train(world, output, device="cpu") == 0
    (world / "loras").symlink_to(output)
    return output


# ------------------------------------------------------------------------------------------- the step


@short
def test_a_cohort_equals_single_runs(tiny_base):
    parts = test_cohort.make_parts(tiny_base, DEVICE)
    # TF32 rounds by the shape of a batch, and AdamW's first steps make a sign of the smallest gradient.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    people = [test_cohort.make_photos(f"ID_{number}", 2, number) for number in range(3)]
    together = test_cohort.train(parts, people, 10)
    [alone] = test_cohort.train(parts, people[1:2], 10)
    assert test_cohort.distance(together[1], alone) < 0.02
    assert test_cohort.distance(together[1], together[0]) > 0.1


def cohort_on_device(tiny_base, people, **options):
    """A Cohort of the tiny pipeline on the device."""
    config, models, branch, class_photos, negatives = test_cohort.make_parts(tiny_base, DEVICE, **options)
    models.set_cohort_size(people)
    photos = [test_cohort.make_photos(f"ID_{number}", 2, number) for number in range(people)]
    return Cohort(config, "ID-Booth", models, branch, photos, class_photos, negatives)


@short
@pytest.mark.parametrize("precision", HALVES)
def test_an_overflow_of_one_identity_is_nobody_elses(tiny_base, precision):
    cohort = cohort_on_device(tiny_base, 2, mixed_precision=precision)
    scales = (float("inf"), 2.0**8)
    for update, scale in zip(cohort.updates, scales, strict=True):
        update.scaler = torch.amp.GradScaler(DEVICE, init_scale=scale)
    before = cohort.adapters.weights.detach().clone()
    terms, _ = cohort.step(0)
    assert torch.equal(cohort.adapters.weights[0], before[0])
    assert not torch.equal(cohort.adapters.weights[1], before[1])
    assert terms.isfinite().all() and cohort.adapters.finite() == [True, True]


@short
@pytest.mark.parametrize("precision", HALVES)
def test_no_step_waits_for_the_device(tiny_base, precision):
    cohort = cohort_on_device(tiny_base, 3, mixed_precision=precision)
    for number in range(2):
        cohort.step(number)
    with no_waiting():
        terms = [cohort.step(number)[0] for number in range(2, 5)]
    assert torch.stack(terms).isfinite().any()


@contextlib.contextmanager
def no_waiting():
    """On a GPU whatever waits for it is an error; on the CPU tests/test_device_proof.py proves as much."""
    if not ON_CARD:
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@short
@needs_card
@pytest.mark.parametrize("precision", ("no", "bf16", "fp16"))
def test_a_recorded_call_trains_what_a_plain_one_does(tiny_base, precision, capsys):
    found = []
    for graph in (False, True):
        cohort = cohort_on_device(tiny_base, 3, mixed_precision=precision, cuda_graph=graph)
        terms = [cohort.step(number)[0] for number in range(4)]
        assert (cohort.models.graphed_unet.replay is not None) == graph
        found.append((torch.stack(terms), cohort.adapters.weights.detach().clone()))
    assert "going on without" not in capsys.readouterr().err
    (plain, weights), (replayed, own) = found
    torch.testing.assert_close(replayed, plain, rtol=0.02, atol=0.02)
    assert cosine(own.flatten(), weights.flatten()) > 0.999


# ---------------------------------------------------------------------------------------- the scripts


@short
@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_with_class_and_validation_images(world, trained, tmp_path, precision):
    mixed = {"fp32": "no"}.get(precision, precision)
    assert train(world, tmp_path, "--mixed-precision", mixed, "--validation-images", 2) == 0
    tolerance = {"fp32": 0.01, "bf16": 0.06, "fp16": 0.03}[precision]
    for name in miniature_runs.PEOPLE:
        for own, reference in zip(losses(tmp_path, name), losses(trained, name), strict=True):
            assert own == pytest.approx(reference, rel=tolerance)
        if precision != "fp16":  # there the first steps overflow, are skipped, and halve the loss's scale
            assert cosine(lora(tmp_path, name), lora(trained, name)) > (0.95 if precision == "fp32" else 0.7)
    pictures = list(tmp_path.glob("ID-Booth/*/checkpoint-*/validation.jpg"))
    assert len(pictures) == 3 and all(load_image(picture).std() > 10 for picture in pictures)


def test_extraction(world, tmp_path):
    reference = {path.stem: torch.load(path) for path in (world / "faces/ID_1/ArcFace_embeds").glob("*.pt")}
    folders = [tmp_path / "faces" / name for name in miniature_runs.PEOPLE]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "images").symlink_to(world / "faces" / folder.name / "images")
    code = miniature_runs.embed(world, "--source-folder", tmp_path / "faces", "--device", DEVICE)
    assert code == 0 and reference
    for stem, embedding in reference.items():
        assert cosine(torch.load(folders[0] / f"ArcFace_embeds/{stem}.pt"), embedding) > 0.999


SAMPLING = {
    "stacked": ("--cohort-size", 3),
    "fused": ("--lora-mode", "fused", "--cohort-size", 1),
    "attached": ("--lora-mode", "attached", "--cohort-size", 1),
}


def sample(world, output, *options, device=DEVICE):
    """Pixels of ID-Booth samples of two people, by name."""
    common = ("--methods", "ID-Booth", "--identities", "ID_1", "ID_2", "--prompt-set", 2, "--device", device)
    assert miniature_runs.sample(world, output, *common, "--no-contact-sheets", *options) == 0
    return {path.relative_to(output): load_image(path).astype(float) for path in output.rglob("*.png")}


@pytest.fixture
def noise_of_any_precision(monkeypatch):
    """Half precision rounds the float32 noise of a seed; torch before 2.13 drew other numbers for it."""

    def drawn(shape, generator=None, device=None, dtype=None, layout=None):
        return randn_tensor(shape, generator, device, torch.float32, layout).to(dtype)

    for module in ("diffusers.utils.torch_utils", "diffusers.schedulers.scheduling_ddpm"):
        monkeypatch.setattr(f"{module}.randn_tensor", drawn)


@pytest.fixture(scope="module")
def sampled(world, trained, tmp_path_factory):
    """The CPU's samples in float32."""
    return sample(world, tmp_path_factory.mktemp("sampled"), *SAMPLING["fused"], device="cpu")


@short
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("mode", SAMPLING)
@pytest.mark.usefixtures("noise_of_any_precision")
def test_sampling(world, trained, sampled, tmp_path, mode, precision):
    made = sample(world, tmp_path, *SAMPLING[mode], "--precision", precision)
    assert made.keys() == sampled.keys() and len(made) == 4
    # In levels of 255, on average over the pixels.
    tolerance = {"fp32": 0.5, "bf16": 8, "fp16": 2}[precision]
    assert max(np.abs(made[name] - sampled[name]).mean() for name in made) < tolerance


@pytest.mark.parametrize("precision", ("fp32", "bf16"))
def test_recogniser_training(world, tmp_path, precision):
    found = {}
    for device, kind in (("cpu", "fp32"), (DEVICE, precision)):
        AcceleratorState._reset_state(reset_partial_state=True)
        output = tmp_path / f"{device}_{kind}"
        changes = dict(device=device, precision=kind, max_epochs=1, dropout=0.0, base_lr=0.01, workers=2)
        config = tiny_training(world / "crops", output, augmentation="randaugment", **changes)
        assert train_fr.train_seeds(config, *train_fr.prepare_data(config)) == 0
        found[device, kind] = read_json(output / "seed_0/last/state.json")["losses"]
    first, *rest = found.values()
    assert all(other == pytest.approx(first, rel=0.02 if precision == "fp32" else 0.05) for other in rest)


def test_networks_of_the_evaluation_run_where_they_are_put():
    network = quality.load_quality_network(WEIGHTS / "quality.safetensors")
    crops = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), dtype=np.uint8)
    expected = quality.quality_scores(network, crops)
    np.testing.assert_allclose(
        quality.quality_scores(network.to(DEVICE), crops), expected, rtol=0.02, atol=0.02
    )
    torch.manual_seed(0)
    pose = SixDRepNet((1, 1, 1, 1), (16, 16, 16, 16), 16).eval()
    expected = sixdrepnet_pose(pose, crops)
    np.testing.assert_allclose(sixdrepnet_pose(pose.to(DEVICE), crops), expected, atol=2)


# ------------------------------------------------------------------------------- what may happen in a run


@pytest.mark.parametrize("options", [("--use-dora",), ("--train-text-encoder",)])
@pytest.mark.parametrize("precision", HALVES)
def test_other_adapters_in_half_precision(world, tmp_path, precision, options):
    common = ("--identities", "ID_1", "--validation-images", 1, "--max-train-steps", 1)
    assert train(world, tmp_path, *common, "--mixed-precision", precision, *options) == 0
    assert lora(tmp_path).isfinite().all() and list(tmp_path.rglob("validation.jpg"))


def test_a_run_that_was_stopped_goes_on(world, tmp_path, monkeypatch):
    assert train(world, tmp_path / "whole", "--max-train-steps", 3) == 0
    step = Cohort.step

    def killed(cohort, number):
        if number == 2:
            raise KeyboardInterrupt
        return step(cohort, number)

    options = ("--max-train-steps", 3, "--resume-minutes", 0)
    monkeypatch.setattr(Cohort, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(world, tmp_path / "parts", *options)
    monkeypatch.undo()
    assert train(world, tmp_path / "parts", *options) == 0
    assert (lora(tmp_path / "whole") - lora(tmp_path / "parts")).norm() < 0.02 * lora(
        tmp_path / "whole"
    ).norm()


def test_a_full_memory_ends_in_the_documented_retry(world, tmp_path, monkeypatch, capsys):
    options = ("--max-train-steps", 1, "--train-batch-size", 16 if ON_CARD else 1)
    with full_memory(world, tmp_path, options, monkeypatch):
        assert train(world, tmp_path / "small", *options) == 0
    assert "out of memory, once more with gradient checkpointing" in capsys.readouterr().err
    rows = read_json(tmp_path / "small/summary.json")
    assert [row["status"] for row in rows] == ["done"] * 3


@contextlib.contextmanager
def full_memory(world, folder, options, monkeypatch):
    """Too little memory for a cohort of three, and enough for one person; on a CPU the error alone."""
    if not ON_CARD:
        step = Cohort.step

        def fails_together(cohort, number):
            if len(cohort.names) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return step(cohort, number)

        monkeypatch.setattr(Cohort, "step", fails_together)
        yield
        return
    total, peaks = torch.cuda.get_device_properties(0).total_memory, []
    for name, people in (("all", ()), ("one", ("--identities", "ID_1"))):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        assert train(world, folder / name, *options, *people) == 0
        peaks.append(torch.cuda.max_memory_reserved())
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((0.4 * peaks[0] + 0.6 * peaks[1]) / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_deterministic_runs_give_the_same_bits(world, tmp_path):
    for name in ("first", "second"):
        assert train(world, tmp_path / name, "--deterministic", "--mixed-precision", "bf16") == 0
    assert torch.equal(lora(tmp_path / "first"), lora(tmp_path / "second"))


def test_compiling_meets_other_batches_and_never_stops_in_silence(tiny_base, monkeypatch):
    _, models, *_ = test_cohort.make_parts(tiny_base, DEVICE)
    unet, settings = models.unet, torch._dynamo.config
    if not ON_CARD:  # what a limit concerns is torch's tracing; a compiler takes a minute here
        monkeypatch.setattr(
            unet, "compile_repeated_blocks", lambda: type(unet).compile_repeated_blocks(unet, backend="eager")
        )
    names = ("recompile_limit", "accumulated_recompile_limit", "fail_on_recompile_limit_hit")
    for name in names:
        monkeypatch.setattr(settings, name, getattr(settings, name))
    width = unet.config.cross_attention_dim

    def call(batch):
        x = torch.randn(batch, 4, 8, 8, device=DEVICE)
        return unet(x, torch.zeros(batch, device=DEVICE), torch.randn(batch, 5, width, device=DEVICE)).sample

    plain = call(1).shape
    compile_blocks(unet)
    assert call(1).shape == plain and [len(call(batch)) for batch in (2, 3, 5)] == [2, 3, 5]
    torch._dynamo.reset()
    monkeypatch.setattr(settings, "recompile_limit", 1)
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        for batch in (1, 2, 3):
            call(batch)
    torch._dynamo.reset()
