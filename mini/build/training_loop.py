"""One resumable training loop for the miniature networks.

Every step draws its randomness from (seed, stage, step), so a run that was stopped and started again ends in
the same weights as an uninterrupted one. The learning rate is constant between a warm-up and a final cosine
decay, so a run can be made longer; the averaged weights are usable at any time.
"""

import contextlib
import json
import math
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mini.build.muon import Muon
from utils.errors import Interrupted, UserError
from utils.files import atomic_path, atomic_write_json, read_json
from utils.progress import log

LOG_EVERY = 50
SAVING_SECONDS = 20


@dataclass
class Schedule:
    """steps: optimisation steps.  learning_rate: peak.  warmup: steps of linear rise.  decay: share of the
    steps at the end with a cosine fall.  ema: decay of the averaged weights (shorter in the beginning).
    save_minutes: minutes between checkpoints.  weight_decay: decoupled, of AdamW.  fit: do fewer steps
    where the deadline comes before their end, so that the fall is complete by then.  bfloat16: for Muon."""

    steps: int
    learning_rate: float
    warmup: int = 100
    decay: float = 0.3
    ema: float = 0.999
    save_minutes: float = 3.0
    weight_decay: float = 0.01
    fit: bool = False
    bfloat16: bool = False

    def __post_init__(self):
        self.most = self.steps

    def adapt(self, step, seconds_per_step, seconds_left):
        """Fit the steps to the time that is left, until the rate begins to fall."""
        if self.fit and step < self.steps * (1 - self.decay):
            possible = min(max(1.0, seconds_left / seconds_per_step), self.most)
            self.steps = min(self.most, step + int(possible))

    def factor(self, step):
        """Share of the peak learning rate at ``step``."""
        rise = min(1.0, (step + 1) / max(1, self.warmup))
        falling = max(1.0, self.decay * self.steps)
        left = min(1.0, (self.steps - step) / falling)
        return rise * (0.01 + 0.99 * 0.5 * (1 - math.cos(math.pi * left)))


class Deadline:
    """The time a build may take, and whether a signal asked it to stop."""

    def __init__(self, minutes=None):
        self.end = None if minutes is None else time.monotonic() + 60 * minutes
        self.asked = self.heeded = False

    def listen(self):
        """Stop on SIGINT, SIGTERM and at the end of the time.

        Inside :meth:`heed` a first signal only sets ``reached``; elsewhere, and for a second one, Interrupted
        is raised at once.
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, self._ask)
        if self.end is not None:
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, self.end - time.monotonic()))

    def _ask(self, *_):
        if self.asked or not self.heeded:
            raise Interrupted("by a signal, or the minutes are over")
        self.asked = True

    @contextlib.contextmanager
    def heed(self):
        """A block that checks ``reached`` after each step and stops by itself."""
        self.heeded = True
        try:
            yield
        finally:
            self.heeded = False

    def seconds_left(self):
        """Seconds until the end of the time, less those that saving and exporting take."""
        return float("inf") if self.end is None else self.end - time.monotonic() - SAVING_SECONDS

    @property
    def reached(self):
        """Whether to stop."""
        return self.asked or (self.end is not None and time.monotonic() > self.end)


class Training:
    """Weights, their running average, optimiser and step of one stage, saved in ``folder``."""

    def __init__(self, folder, modules, schedule):
        self.folder, self.modules, self.schedule = Path(folder), modules, schedule
        named = {
            f"{name}.{key}": p for name, module in modules.items() for key, p in module.named_parameters()
        }
        self.names = [key for key, parameter in named.items() if parameter.requires_grad]
        self.weights = [named[key] for key in self.names]
        self.average = [weight.detach().clone() for weight in self.weights]
        self.optimizers = make_optimizers(self.names, self.weights, schedule)
        self.step = 0
        if (self.folder / "checkpoint").exists():
            self.load()

    def load(self):
        """Go on from the checkpoint; UserError when it belongs to a network of other shapes."""
        checkpoint = self.folder / "checkpoint"
        saved, average = (
            load_file(checkpoint / "weights.safetensors"),
            load_file(checkpoint / "average.safetensors"),
        )
        if {key: value.shape for key, value in saved.items()} != {
            key: weight.shape for key, weight in zip(self.names, self.weights, strict=True)
        }:
            raise UserError(
                f"{checkpoint}: belongs to a network of another size; delete it or restore the settings"
            )
        with torch.no_grad():
            for key, weight, mean in zip(self.names, self.weights, self.average, strict=True):
                weight.copy_(saved[key])
                mean.copy_(average[key])
        states = torch.load(checkpoint / "optimizers.pt", map_location="cpu", weights_only=True)
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)
        self.step = read_json(checkpoint / "state.json")["step"]

    def save(self):
        """Write the checkpoint, whole or not at all."""
        with atomic_path(self.folder / "checkpoint") as temporary:
            temporary.mkdir()
            pairs = (("weights", self.weights), ("average", self.average))
            for name, tensors in pairs:
                content = {k: t.detach().contiguous() for k, t in zip(self.names, tensors, strict=True)}
                save_file(content, temporary / f"{name}.safetensors")
            torch.save([optimizer.state_dict() for optimizer in self.optimizers], temporary / "optimizers.pt")
            atomic_write_json(temporary / "state.json", {"step": self.step})

    def update(self, loss):
        """One optimiser step on ``loss`` and one of the average; the gradient's norm before clipping.

        On a GPU nothing here waits for it: whether losses are finite is seen when they are logged.
        """
        if loss.device.type == "cpu":
            self.check_finite(loss.detach())
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.schedule.learning_rate * self.schedule.factor(self.step)
            optimizer.step()
            optimizer.zero_grad()
        keep = min(self.schedule.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [w.detach() for w in self.weights], 1 - keep)
        self.step += 1
        return norm

    def check_finite(self, loss):
        """UserError for a loss, or a mean of several, that is not finite."""
        if not math.isfinite(loss):
            raise UserError(
                f"{self.folder.name}: the loss is not finite at step {self.step}; lower its learning rate"
            )

    def use_average(self):
        """Put the averaged weights into the modules."""
        with torch.no_grad():
            for weight, mean in zip(self.weights, self.average, strict=True):
                weight.copy_(mean)


def make_optimizers(names, weights, schedule):
    """Muon for inner matrices and convolutions, AdamW for embeddings, first and last layers, and vectors."""
    outer = ("embedding", "conv_in.", "conv_out.", "quant_conv.")
    inside = [
        weight.ndim >= 2 and not any(part in name for part in outer)
        for name, weight in zip(names, weights, strict=True)
    ]
    matrices = [weight for weight, chosen in zip(weights, inside, strict=True) if chosen]
    others = [weight for weight, chosen in zip(weights, inside, strict=True) if not chosen]
    rate, decay = schedule.learning_rate, schedule.weight_decay
    return [
        Muon(
            matrices, rate, weight_decay=decay, dtype=torch.bfloat16 if schedule.bfloat16 else torch.float32
        ),
        torch.optim.AdamW(others, rate, betas=(0.9, 0.99), weight_decay=decay, fused=True),
    ]


def run_training(training, loss_of_step, deadline, name, watch=None):
    """Train to the schedule's end.

    Args:
        training: a Training.
        loss_of_step: step -> (loss, mapping of further figures to log).
        deadline: a Deadline; when it is reached the checkpoint is written and Interrupted raised.
        watch: called with the Training after each checkpoint, for instance to evaluate it.
    """
    schedule, folder = training.schedule, training.folder
    saved_at = started = time.monotonic()
    sums, logged, logged_at = {}, training.step, started
    with deadline.heed():
        while training.step < schedule.steps:
            loss, figures = loss_of_step(training.step)
            norm = training.update(loss)
            for key, value in {"loss": loss, "gradient_norm": norm, **figures}.items():
                sums[key] = sums.get(key, 0.0) + torch.as_tensor(value).detach().double()
            if training.step % LOG_EVERY == 0:
                means = {key: float(value) / (training.step - logged) for key, value in sums.items()}
                training.check_finite(means["loss"])
                now, count = time.monotonic(), training.step - logged
                schedule.adapt(training.step, (now - logged_at) / count, deadline.seconds_left())
                write_line(folder, name, training, means, (now - logged_at) / count)
                sums, logged, logged_at = {}, training.step, now
            over = deadline.reached
            due = time.monotonic() - saved_at > 60 * schedule.save_minutes
            if over or due or training.step == schedule.steps:
                training.save()
                saved_at = time.monotonic()
                if watch is not None:
                    watch(training)
            if over and training.step < schedule.steps:
                raise Interrupted(f"{name}: saved at step {training.step} of {schedule.steps}")


def write_line(folder, name, training, means, seconds):
    """One status line on stderr and one JSON line in the stage's log."""
    left = (training.schedule.steps - training.step) * seconds / 60
    shown = "  ".join(f"{key} {value:.4f}" for key, value in means.items())
    step = f"{training.step:6d}/{training.schedule.steps}"
    log(f"{name} {step}  {shown}  {seconds:.2f} s/step  {left:.0f} min left")
    with open(folder / "log.jsonl", "a", encoding="utf-8") as stream:
        stream.write(json.dumps({"step": training.step, "seconds_per_step": seconds, **means}) + "\n")
