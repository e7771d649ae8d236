"""What is recorded as a CUDA graph is a function of tensors alone; everything but the recording, on a CPU."""

import dataclasses

import pytest
import torch
from torch.utils._pytree import tree_leaves

from id_booth.diffusion.stacked_lora import slot_state
from id_booth.training.cohort import Cohort
from id_booth.training.frozen_models import FrozenModels
from id_booth.training.graphed_call import GraphedCall
from tests.test_cohort import make_parts, make_photos
from utils.errors import UserError


def record_on_cpu(function, sample):
    """As torch.cuda.make_graphed_callables: replays read from ``sample`` and write to the same places."""
    places = tree_leaves(sample)
    learning = [place for place in places if place.requires_grad]
    output = torch.empty_like(function(*sample))

    class Replay(torch.autograd.Function):
        @staticmethod
        def forward(context, *inputs):
            with torch.no_grad():
                for place, given in zip(places, inputs, strict=True):
                    place.copy_(given)
            with torch.enable_grad():
                context.recomputed = function(*sample)
            return output.copy_(context.recomputed.detach()).detach()

        @staticmethod
        def backward(context, gradient):
            found = iter(torch.autograd.grad(context.recomputed, learning, gradient))
            return tuple(next(found) if place.requires_grad else None for place in places)

    return lambda *arguments: Replay.apply(*tree_leaves(arguments))


def train(parts, people, graphed, record=record_on_cpu):
    """The LoRAs after three steps."""
    config, models, branch, class_photos, negatives = parts
    models.set_cohort_size(len(people))
    models.graphed_unet = GraphedCall(models.call_unet, record)
    config = dataclasses.replace(config, cuda_graph=graphed)
    cohort = Cohort(config, "ID-Booth", models, branch, people, class_photos, negatives)
    for step in range(3):
        cohort.step(step)
    return [slot_state(models.lora["unet"], slot, "unet") for slot in range(len(people))]


def same(first, second):
    return all(torch.equal(a[key], b[key]) for a, b in zip(first, second, strict=True) for key in a)


def test_a_replayed_step_trains_what_a_plain_one_does(tiny_base):
    parts = make_parts(tiny_base)
    people = [make_photos(f"ID_{number}", 2, number) for number in range(2)]
    recordings = []

    def counted(function, sample):
        recordings.append([tuple(leaf.shape) for leaf in tree_leaves(sample)])
        return record_on_cpu(function, sample)

    assert same(train(parts, people, True, counted), train(parts, people, False))
    assert len(recordings) == 1 and recordings[0][1] == (4, 4, 8, 8)
    models = parts[1]
    train(parts, people, True)
    with models.recomputing():
        assert models.graphed_unet.replay is None


def test_other_shapes_are_recorded_anew_and_gradients_flow():
    call = GraphedCall(lambda weights, given: weights * given["x"], record_on_cpu)
    weights = torch.tensor([2.0, 3.0], requires_grad=True)
    for size in (1, 4, 4):
        result = call(weights, {"x": torch.full((size, 2), float(size))})
        assert torch.equal(result, torch.tensor([[2.0 * size, 3.0 * size]] * size))
        (gradient,) = torch.autograd.grad(result.sum(), weights)
        assert gradient.tolist() == [size * size] * 2
    assert call.shapes[1][0] == (4, 2)


def test_where_recording_fails_the_call_is_plain_and_a_full_memory_is_told(capsys):
    def fails(function, sample):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    call = GraphedCall(torch.exp, fails)
    assert torch.equal(call(torch.zeros(2)), torch.ones(2)) and torch.equal(
        call(torch.zeros(2)), torch.ones(2)
    )
    assert capsys.readouterr().err.count("going on without") == 1

    def full(function, sample):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        GraphedCall(torch.exp, full)(torch.zeros(2))


@pytest.mark.parametrize("rival", ["gradient_checkpointing", "compile_unet", "train_text_encoder"])
def test_what_cannot_be_recorded_is_refused(tiny_base, rival):
    config = make_parts(tiny_base)[0]
    with pytest.raises(UserError, match=f"cuda_graph: cannot be combined with {rival}"):
        dataclasses.replace(config, cuda_graph=True, **{rival: True}).check()


def test_a_cpu_is_refused(tiny_base):
    config = make_parts(tiny_base)[0]
    with pytest.raises(UserError, match="cuda_graph: needs a GPU"):
        FrozenModels(dataclasses.replace(config, cuda_graph=True), torch.device("cpu"))
