"""Losses gathered between two lines of the log, without a device sync per step."""

import resource
import time

import torch


class Meter:
    """Sums of losses and counts that wait on the device, so that no step has to."""

    def __init__(self):
        self.reset()

    def reset(self):
        """Start a new interval."""
        self.terms, self.bands, self.started = [], [], time.perf_counter()

    def add(self, terms, bands):
        """Keep one step's (C, 4) losses and (C, BANDS, 2) counts."""
        self.terms.append(terms)
        self.bands.append(bands)

    def flush(self, cohort, runs, step, epoch, bar):
        """Log the interval; returns (slot, reason) of identities whose training broke down in it.

        Such an identity stops here: its last checkpoint stays, the others go on.
        """
        if not self.terms:
            return []
        seconds = (time.perf_counter() - self.started) / len(self.terms)
        terms, bands = torch.stack(self.terms).cpu(), torch.stack(self.bands).sum(0)
        items = len(runs) * cohort.config.train_batch_size * cohort.config.gradient_accumulation_steps
        timing = {
            "step_ms": round(1000 * seconds, 2),
            "images_per_s": round(items * (2 if cohort.class_photos else 1) / seconds, 2),
            "memory_mib": memory_mib(cohort.models.device),
            "learning_rate": cohort.updates[0].scheduler.get_last_lr()[0],
        }
        finite, broken = cohort.adapters.finite(), []
        for slot, run in enumerate(runs):
            if not cohort.active[slot]:
                continue
            if finite[slot] and self.loss_is_sound(cohort, terms[:, slot, -1]):
                run.log(step, epoch, mean_terms(terms[:, slot], bands[slot]), bands[slot].tolist(), timing)
            else:
                cohort.retire(slot)
                run.close()
                broken.append((slot, f"loss not finite before step {step}; lower learning_rate or use bf16"))
        shown = {"loss": f"{terms[:, :, -1].nanmean():.3f}", "ms": round(1000 * seconds)}
        if cohort.term.needs_faces:
            shown["faces"] = f"{float(bands[..., 1].sum() / bands[..., 0].sum()):.0%}"
        bar.set_postfix(shown)
        self.reset()
        return broken

    def loss_is_sound(self, cohort, losses):
        """Whether an interval's losses are finite; with loss scaling, steps that overflow are skipped."""
        finite = losses.isfinite()
        return bool(finite.any() if cohort.updates[0].scaler.is_enabled() else finite.all())


def mean_terms(terms, bands):
    """(4,) means of an interval's (N, 4) losses over the finite steps; NaN for what there is not.

    The identity term of an interval in which no item had one is no number: a zero would read as perfect.
    """
    sound = terms[terms[:, -1].isfinite()]
    means = sound.mean(0).tolist()
    if not bands[:, 1].sum():
        means[2] = float("nan")
    return means


def memory_mib(device):
    """Peak memory so far: held by torch on the GPU (a recorded graph's too), or resident in this process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_reserved(device) / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
