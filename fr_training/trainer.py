"""The training loop of a face recogniser: one seed, any number of processes, resumable to the bit.

Every process holds the same data, draws the same permutation, and takes its own slice of each step's images.
Learning rate, best epoch and the end follow from validation scores that all processes share.
"""

import itertools
import time
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.nn import functional

from evaluation.quality import certainty_ratio, official_state_dict
from fr_training import schedule
from fr_training.batches import AugmentedBatches
from fr_training.heads import HEADS
from fr_training.networks import build_network, load_weights, save_network, to_input
from fr_training.optimizer import load_optimizer, make_optimizer, save_optimizer
from utils.devices import to_device
from utils.errors import UserError, one_line
from utils.files import atomic_path, atomic_write_json, read_json
from utils.progress import log, progress
from utils.seeding import derive_seed

SAVE_SECONDS = 60  # half a gigabyte of iresnet50 takes longer to write than a small set's epoch on a GPU
QUALITY_FILE = "quality_backbone.pth"  # as CR-FIQA publishes its networks; evaluation/quality.py loads it


class Recogniser(nn.Module):
    """Backbone and head as one module, so that one data-parallel wrapper sees every gradient."""

    def __init__(self, config, num_classes):
        super().__init__()
        self.network = build_network(config.network, config.embedding_size, config.dropout)
        sizes = (config.embedding_size, num_classes)
        if config.head == "AdaFace":
            self.head = HEADS["AdaFace"](*sizes, m=config.m, h=config.h, s=config.s, t_alpha=config.t_alpha)
        else:
            self.head = HEADS[config.head](*sizes, s=config.s, m=config.m)
        self.normalise = config.normalise_embeddings
        # Last, so that backbone and head start from the same weights with and without it.
        self.quality = nn.Linear(config.embedding_size, 1) if config.quality_head else None
        self.ratio = config.quality_ratio

    def forward(self, images, labels):
        """Loss parts of float images (N, 3, 112, 112) and labels (N,): classification and, with a quality
        head, the smooth L1 distance (beta 0.5) of predicted quality to certainty ratio (CR-FIQA)."""
        embeddings = self.network(images)
        logits = self.head(functional.normalize(embeddings) if self.normalise else embeddings, labels)
        classification = functional.cross_entropy(logits.float(), labels)
        if self.quality is None:
            return classification[None]
        target = certainty_ratio(self.head.cosines(embeddings.detach()), labels, self.ratio)
        with torch.autocast(embeddings.device.type, enabled=False):
            predicted = self.quality(embeddings.float())[:, 0]
        return torch.stack([classification, functional.smooth_l1_loss(predicted, target, beta=0.5)])

    def clipped_together(self):
        """The weights whose gradient norms are clipped: backbone (its quality head included), and head."""
        quality = [] if self.quality is None else list(self.quality.parameters())
        return [*self.network.parameters(), *quality], list(self.head.parameters())


def count_steps(images, per_step):
    """Steps of an epoch; UserError where the images do not suffice for one."""
    if images < per_step:
        raise UserError(f"batch_size: one step needs {per_step} images, the set has {images}; lower it")
    return images // per_step


class Trainer:
    """Trains one seed.

    Args:
        config: TrainFRConfig.
        data: CropSet to train on.
        validate: function of a network (on the device) -> score, higher is better; None for no selection.
        accelerator: accelerate's; it owns device, precision and processes.
        folder: of this seed; holds last/ (exact resume), best/ and state.json.
        seed: of weights, order, augmentation and dropout.
        writer: TensorBoard's SummaryWriter, or None.
    """

    def __init__(self, config, data, validate, accelerator, folder, seed, writer=None):
        self.config, self.data, self.validate, self.writer = config, data, validate, writer
        self.accelerator, self.folder, self.seed = accelerator, Path(folder), seed
        self.images_per_step = config.batch_size * accelerator.num_processes
        self.steps_per_epoch = count_steps(len(data), self.images_per_step)
        self.total_steps = config.max_epochs * self.steps_per_epoch
        self.total_steps = min(self.total_steps, config.max_steps or self.total_steps)
        self.batches = AugmentedBatches(config, data, accelerator, seed, self.steps_per_epoch)
        torch.manual_seed(derive_seed("fr weights", seed))
        self.model = Recogniser(config, len(data.names))
        self.layout = memory_layout(self.model, accelerator.device)
        self.model.to(memory_format=self.layout)
        self.optimizer = make_optimizer(config, self.model)
        self.peak = schedule.published_learning_rate(
            config.base_lr, config.batch_size, accelerator.num_processes
        )
        self.state = {"epoch": 0, "scores": [], "losses": [], "finished": False}
        self.saved_at = time.monotonic()
        weights = [1.0, config.quality_weight] if config.quality_head else [1.0]
        self.loss_weights = torch.tensor(weights, device=accelerator.device)
        self.parallel, self.optimizer = accelerator.prepare(self.model, self.optimizer)
        self.resume()

    def train(self, deadline=None):
        """Run to the end, or to the end of the epoch in which `deadline` (time.monotonic) passes.

        Returns the state: epoch, scores, losses, finished.
        """
        while not self.state["finished"]:
            epoch = self.state["epoch"]
            loss, *quality_loss = self.run_epoch(epoch)
            self.state["losses"].append(loss)
            if quality_loss:
                self.state.setdefault("quality_losses", []).extend(quality_loss)
            improved = self.score_epoch()
            self.state["epoch"] = epoch + 1
            done = self.state["epoch"] * self.steps_per_epoch
            self.state["finished"] = done >= self.total_steps or self.stalled()
            leaving = not self.share(deadline is None or time.monotonic() < deadline)
            self.save(improved, self.state["finished"] or leaving)
            if leaving:
                break
        return self.state

    def run_epoch(self, epoch):
        """One pass, or its part up to the last step of all.

        Returns the mean loss, and the mean quality loss where there is a quality head. UserError when the
        loss is not finite (on all processes alike).
        """
        steps = min(self.steps_per_epoch, self.total_steps - epoch * self.steps_per_epoch)
        self.parallel.train()
        torch.manual_seed(derive_seed("fr dropout", self.seed, epoch, self.accelerator.process_index))
        total, since = torch.zeros_like(self.loss_weights), 0
        batches = progress(
            itertools.islice(self.batches.of_epoch(epoch), steps),
            f"epoch {epoch}",
            steps,
            disable=not self.accelerator.is_main_process,
        )
        losses = []
        for place, (images, labels) in enumerate(batches):
            total += self.step(epoch * self.steps_per_epoch + place, images, labels)
            since += 1
            if since == self.config.log_every or place + 1 == steps:
                mean = self.accelerator.reduce(total / since, "mean").tolist()
                if not np.isfinite(mean).all():
                    raise UserError(
                        f"{self.folder}: the loss is not finite in epoch {epoch}; lower base_lr or use a "
                        "warm-up, with another output (the last epoch saved is kept in this one)"
                    )
                losses.append((mean, since))
                batches.set_postfix(loss=f"{mean[0]:.3f}", lr=f"{self.rate:.2e}")
                total, since = torch.zeros_like(total), 0
        values, counts = zip(*losses, strict=True)
        return np.average(values, axis=0, weights=counts).tolist()

    def step(self, step, images, labels):
        """One optimiser step on uint8 images (N, 112, 112, 3) and labels (N,), tensors on the CPU.

        Returns the loss and, with a quality head, its unweighted part: (1,) or (2,), detached, on the device.
        """
        self.rate = schedule.learning_rate(
            self.config,
            self.peak,
            step,
            self.total_steps,
            self.steps_per_epoch,
            self.state["scores"],
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        device = self.accelerator.device
        x = to_input(images, device).contiguous(memory_format=self.layout)
        with self.accelerator.autocast():
            parts = self.parallel(x, to_device(labels, device))
        loss = parts @ self.loss_weights
        self.optimizer.zero_grad()
        self.accelerator.backward(loss)
        if self.config.clip_norm:
            for weights in self.model.clipped_together():
                self.accelerator.clip_grad_norm_(weights, self.config.clip_norm)
        self.optimizer.step()
        return torch.cat([loss[None], parts[1:]]).detach()

    def score_epoch(self):
        """Append the validation score, the same on every process; True when it is the best so far."""
        if self.validate is None:
            return True
        score = None
        if self.accelerator.is_main_process:
            score = float(self.validate(self.model.network))
        scores = self.state["scores"]
        scores.append(self.share(score))
        return schedule.best_epoch(scores) == len(scores) - 1

    def share(self, value):
        """The main process's value, on all processes."""
        return broadcast_object_list([value])[0]

    def stalled(self):
        """Whether the scores have not gained for `stop_patience` epochs."""
        patience = self.config.stop_patience
        return bool(
            patience
            and self.state["scores"]
            and schedule.epochs_without_gain(self.state["scores"]) >= patience
        )

    def save(self, improved, ending):
        """Write last/ for an exact resume, and best/ when this epoch is it. Main process only.

        An epoch that is not the best, nor where training ends, is written only once in SAVE_SECONDS.
        """
        best = improved and self.validate is not None
        if self.accelerator.is_main_process:
            if best or ending or time.monotonic() - self.saved_at > SAVE_SECONDS:
                self.write(improved)
            self.report(best)
        self.accelerator.wait_for_everyone()

    def write(self, improved):
        """The state of this epoch to last/, and its network to best/ if `improved`."""
        if improved:
            self.write_best()
        with atomic_path(self.folder / "last") as temporary:
            temporary.mkdir()
            save_network(self.model, temporary / "model.safetensors")
            save_optimizer(self.optimizer, temporary)
            atomic_write_json(temporary / "state.json", self.state)
        self.saved_at = time.monotonic()

    def report(self, best):
        """The epoch's line in the log, and its points in TensorBoard."""
        epoch, scores = self.state["epoch"] - 1, self.state["scores"]
        points = {
            "loss": self.state["losses"][-1],
            **({"quality loss": self.state["quality_losses"][-1]} if self.config.quality_head else {}),
            "lr": self.rate,
            **({"score": scores[-1]} if scores else {}),
        }
        values = "  ".join(f"{name} {value:.4g}" for name, value in points.items())
        log(f"seed {self.seed}  epoch {epoch:3d}  {values}{'  (best)' if best else ''}")
        if self.writer:
            for name, value in points.items():
                self.writer.add_scalar(name, value, epoch)

    def write_best(self):
        """The best network so far, with the epoch it is from."""
        with atomic_path(self.folder / "best") as temporary:
            temporary.mkdir()
            save_network(self.model.network, temporary / "network.safetensors")
            if self.model.quality is not None:
                state = official_state_dict(self.model.network, self.model.quality)
                torch.save({name: value.cpu() for name, value in state.items()}, temporary / QUALITY_FILE)
            atomic_write_json(
                temporary / "state.json",
                {**self.state, "network": self.config.network, "embedding_size": self.config.embedding_size},
            )

    def resume(self):
        """Continue from last/ if there is one."""
        last = self.folder / "last"
        if not (last / "state.json").is_file():
            return
        load_weights(self.model, last / "model.safetensors")
        try:
            load_optimizer(self.optimizer, last)
            self.state = checked_state(read_json(last / "state.json"))
        except UserError:
            raise
        except Exception as error:  # damaged files of an optimiser can be wrong in any way
            reason = f"cannot go on from it ({type(error).__name__}: {one_line(error)[:120]})"
            raise UserError(f"{last}: damaged, {reason}; delete it to train from the start") from error


def checked_state(state):
    """What a training noted of itself; ValueError, KeyError or TypeError for another form."""
    if not isinstance(state["finished"], bool) or not 0 <= int(state["epoch"]) == len(state["losses"]):
        raise ValueError("its state.json does not fit together")
    return state | {"scores": list(map(float, state["scores"])), "losses": list(map(float, state["losses"]))}


def memory_layout(model, device):
    """The memory format that ``model`` trains in: channels last, which is faster.

    The exception: on a CPU with AVX-512, oneDNN's weight gradient of a strided 1 x 1 convolution with fewer
    than 16 input channels ends in a segmentation fault (torch 2.13, seen with 8 channels).
    """
    fragile = any(
        isinstance(layer, nn.Conv2d)
        and layer.in_channels < 16
        and layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        for layer in model.modules()
    )
    wide = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")
    if fragile and wide and torch.device(device).type == "cpu":
        return torch.contiguous_format
    return torch.channels_last
