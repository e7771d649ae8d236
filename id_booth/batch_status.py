"""How far a batch is: what is done, running, failed or left, and for how long; all from the output folder."""

import contextlib
import json
import os
from pathlib import Path

from arcface_files.people import class_images
from id_booth.consent import known_consent
from id_booth.diffusion.base_costs import disk_needed
from id_booth.training.other_people import digests_of_others
from id_booth.training.photos import photo_files
from id_booth.training.run_folder import LOG_FILE, IdentityRun
from utils.claims import read_batch
from utils.errors import UserError, one_line
from utils.identities import image_files
from utils.progress import log
from utils.run_record import summarise

LOG_TAIL = 4096  # bytes at the end of a log that surely hold its last line
LOGS_READ = 20  # finished trainings asked for their speed
IMAGES_TIMED = 200


# ---------------------------------------------------------------------------------------------- training


def training_rows(config, identities):
    """(rows, step times in seconds): each identity and objective with photos, steps and state."""
    living, failed = read_batch(config.output_folder)
    rows, times, others = [], [], digests_of_others(config)
    for identity in identities:
        photos = 0
        with contextlib.suppress(UserError):  # the state says it
            photos = len(image_files(identity.images_dir))
        items = max(photos, config.num_class_images if config.with_prior_preservation else 0)
        for objective in config.objectives:
            run = IdentityRun(config, objective, identity, others=others)
            line = last_line(run.folder / LOG_FILE) if len(times) < LOGS_READ or run.unit in living else {}
            times += [line["step_ms"] / 1000] if line else []
            status, done, detail = training_state(run, living, failed, line)
            rows.append(
                {
                    "identity": identity.name,
                    "objective": objective,
                    "photos": photos,
                    "steps": config.total_steps(items),
                    "done": done,
                    "status": status,
                    "detail": detail,
                }
            )
    return rows, times


def any_left(config, identities):
    """Whether a run has anything to train, or to report as failed."""
    return any(row["status"] != "done" for row in training_rows(config, identities)[0])


def training_state(run, living, failed, line):
    """(status, steps done, detail) of a run."""
    try:
        known_consent(run.identity, run.config.require_consent, "train")
        if final := run.finished():
            return "done", int(final.name.rpartition("-")[2]), final.name
        if run.unit in living:
            return "running", line.get("step", 0), f"process {living[run.unit].get('pid')}"
        photo_files(run.identity)
        step = run.resume_step()
    except UserError as error:
        return "failed", 0, one_line(error)
    if run.unit in failed:
        return "failed", step, str(failed[run.unit].get("reason", ""))
    return ("interrupted" if step else "to do"), step, ""


def last_line(path):
    """The last whole line of a train_log.jsonl with a step and its time, {} when there is none."""
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        if not os.path.isfile(path):  # nor a pipe, which would wait for ever
            return {}
        with open(path, "rb") as stream:
            stream.seek(max(0, os.path.getsize(path) - LOG_TAIL))
            line = json.loads(stream.read().splitlines()[-1])
        return {"step": int(line["step"]), "step_ms": float(line["step_ms"])}
    return {}


def print_training_status(config, identities):
    """Table and time left of a training batch; 1 when something has failed."""
    rows, times = training_rows(config, identities)
    code = summarise([{k: v for k, v in row.items() if k != "photos"} for row in rows])
    workers = len({process(entry) for entry in read_batch(config.output_folder)[0].values()})
    left = sum(max(0, row["steps"] - row["done"]) for row in rows if row["status"] not in ("done", "failed"))
    report_time(left, "step", sum(times) / len(times) if times else None, workers, code)
    return code


def print_training_plan(config, identities):
    """What a run would do, without loading any network; 1 when something would fail."""
    rows, times = training_rows(config, identities)
    code = summarise(rows)
    if config.with_prior_preservation:
        count = len(image_files(class_images(config.class_folder).images_dir))
        log(f"class images: {count} of {config.num_class_images} in {config.class_folder}")
    log(f"disk: up to {disk_needed(config, len(identities)) / 2**30:.2f} GiB in {config.output_folder}")
    left = sum(max(0, row["steps"] - row["done"]) for row in rows if row["status"] not in ("done", "failed"))
    log(f"steps: {left}")
    if times:
        report_time(left, "step", sum(times) / len(times), 0, code)
    else:
        log("time: known from the first steps on (--status)")
    return code


# ---------------------------------------------------------------------------------------------- sampling


def print_sampling_status(plan, folder):
    """Table and time left of a sampling batch (id_booth.sampling.plan.Plan); 1 when something has failed."""
    living, failed = read_batch(folder)
    for unit in plan.units:
        name = f"{unit.method}/{unit.identity}"
        if name in living:
            unit.status, unit.detail = "running", f"process {living[name].get('pid')}"
        elif name in failed and unit.missing:
            unit.status, unit.detail = "failed", str(failed[name].get("reason", ""))
        elif unit.status == "done before":
            unit.status = "done"
    code = summarise([unit.row() for unit in plan.units])
    left = sum(unit.missing for unit in plan.units if unit.status != "failed")
    workers = len({process(entry) for entry in living.values()})
    report_time(left, "image", seconds_per_image(folder, max(1, workers)), workers, code)
    return code


def seconds_per_image(folder, workers):
    """Seconds one process takes for an image, from when the newest ones were written; None without any."""
    times = sorted((path.stat().st_mtime for path in Path(folder).glob("*/*/*.png")), reverse=True)
    times = times[:IMAGES_TIMED]
    if len(times) < 2 or times[0] == times[-1]:
        return None
    return (times[0] - times[-1]) / (len(times) - 1) * workers


# ------------------------------------------------------------------------------------------------- both


def process(entry):
    """What tells the process of a claim from others."""
    return entry.get("host"), entry.get("pid"), entry.get("started")


def duration(seconds):
    """A length of time in words a person reads at once."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def report_time(left, what, seconds, workers, failed):
    """One line: how much is left, at which speed, for how long."""
    if not left:
        return log("nothing is left to do" + (" but what failed" if failed else ""))
    speed = "time not known yet" if seconds is None else f"{seconds:.3g} s each"
    text = f"left: {left} {what}s, {speed}"
    if seconds is not None:
        text += f", {duration(left * seconds / max(1, workers))} for {max(1, workers)} process"
        text += "es" if workers > 1 else ""
    return log(text + ("" if workers else "; nothing is running"))
