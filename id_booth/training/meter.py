"""Losses gathered between two lines of the log, without a device sync per step."""

import resource
import time

import torch

from id_booth.diffusion.stacked_lora import all_finite


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

        An identity with a non-finite loss or weight stops here: its last checkpoint stays, the others go on.
        """
        if not self.terms:
            return []
        seconds = (time.perf_counter() - self.started) / len(self.terms)
        terms = torch.stack(self.terms).cpu()
        bands = torch.stack(self.bands).sum(0)
        items = len(runs) * cohort.config.train_batch_size * cohort.config.gradient_accumulation_steps
        timing = {
            "step_ms": round(1000 * seconds, 2),
            "images_per_s": round(items * (2 if cohort.class_photos else 1) / seconds, 2),
            "memory_mib": memory_mib(cohort.models.device),
            "learning_rate": cohort.scheduler.get_last_lr()[0],
        }
        broken = []
        for slot, run in enumerate(runs):
            if not cohort.active[slot]:
                continue
            finite = torch.isfinite(terms[:, slot, -1]).all()
            weights = all(all_finite(layers, slot) for layers in cohort.models.lora_groups().values())
            if finite and weights:
                run.log(step, epoch, terms[:, slot].mean(0).tolist(), bands[slot].tolist(), timing)
            else:
                cohort.retire(slot)
                run.close()
                broken.append((slot, f"loss not finite before step {step}; lower learning_rate or use bf16"))
        bar.set_postfix(loss=f"{terms[:, :, -1].nanmean():.3f}", ms=round(1000 * seconds))
        self.reset()
        return broken


def memory_mib(device):
    """Peak memory so far: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
