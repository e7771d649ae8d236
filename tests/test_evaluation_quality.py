"""CR-FIQA: its file format, its colours, its target."""

import numpy as np
import pytest
import torch

from arcface_files.iresnet import IResNet, iresnet50, iresnet100
from evaluation.inputs import MetricError
from evaluation.quality import QualityNetwork, certainty_ratio, load_quality_network, quality_scores
from utils.errors import UserError


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return QualityNetwork(IResNet((1, 1, 1, 1), (8, 8, 8, 8), 16)).eval()


@pytest.fixture
def small_file(small, tmp_path):
    torch.save(small.official_state_dict(), tmp_path / "32572backbone.pth")
    return tmp_path / "32572backbone.pth"


def test_official_format_of_both_sizes_loads_strictly(tmp_path):
    network = QualityNetwork(iresnet50())
    state = network.official_state_dict()
    torch.save(state, tmp_path / "32572backbone.pth")
    loaded = load_quality_network(tmp_path / "32572backbone.pth")
    assert loaded.published_name == "CR-FIQA(S)" and not loaded.training
    assert {"conv1.weight", "layer3.13.bn3.running_var", "fc.bias", "features.weight"} <= set(state)
    assert state["qs.weight"].shape == (1, 512) and state["qs.bias"].shape == (1,)
    assert QualityNetwork(iresnet100()).published_name == "CR-FIQA(L)"


def test_scores_are_those_of_the_network_in_rgb_or_swapped(small, small_file):
    crops = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), dtype=np.uint8)
    loaded = load_quality_network(small_file)
    with torch.inference_mode():
        pixels = torch.from_numpy(crops.transpose(0, 3, 1, 2).copy()).float() / 127.5 - 1
        embedding, quality = small(pixels)
        expected = small.qs(small.backbone(pixels))[:, 0]
    np.testing.assert_allclose(quality_scores(loaded, crops), expected, atol=1e-4)
    assert embedding.shape == (3, 16) and quality.shape == (3,)
    swapped = quality_scores(loaded, crops, "BGR")
    np.testing.assert_allclose(swapped, quality_scores(loaded, crops[..., ::-1]), atol=1e-5)
    assert np.abs(swapped - quality_scores(loaded, crops)).max() > 1e-3
    with pytest.raises(UserError, match="quality_colour"):
        quality_scores(loaded, crops, "GRB")


def test_wrong_files_are_refused_with_the_source(small, tmp_path):
    with pytest.raises(UserError, match="fdbtrs/CR-FIQA"):
        load_quality_network(tmp_path / "absent.pth")
    state = small.official_state_dict()
    torch.save({k: v for k, v in state.items() if not k.startswith("qs.")}, tmp_path / "backbone.pth")
    with pytest.raises(UserError, match="no quality head"):
        load_quality_network(tmp_path / "backbone.pth")
    torch.save(state | {"stray.weight": torch.zeros(1)}, tmp_path / "stray.pth")
    with pytest.raises(UserError, match="stray.weight"):
        load_quality_network(tmp_path / "stray.pth")
    torch.save(state | {"qs.weight": torch.zeros(1, 5)}, tmp_path / "head.pth")
    with pytest.raises(UserError, match="quality head does not fit"):
        load_quality_network(tmp_path / "head.pth")


def test_code_in_a_weight_file_never_runs(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"qs.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match="refused"):
        load_quality_network(tmp_path / "trap.pth")
    assert not (tmp_path / "ran").exists()


def test_certainty_ratio_by_hand():
    cosines = torch.tensor([[0.8, 0.4, -0.2], [0.1, 0.5, 0.25], [-0.5, -0.25, -0.3]], requires_grad=True)
    labels = torch.tensor([0, 1, 2])
    ratio = certainty_ratio(cosines, labels)
    # 0.8 / 1.4; 0.5 / 1.25; -0.3 / 0.75
    torch.testing.assert_close(ratio, torch.tensor([4 / 7, 0.4, -0.4]))
    assert not ratio.requires_grad
    torch.testing.assert_close(certainty_ratio(cosines, labels, "code")[:2], torch.tensor([2.0, 2.0]))
    with pytest.raises(MetricError):
        certainty_ratio(cosines[:, :1], torch.tensor([0, 0, 0]))
    with pytest.raises(UserError, match="quality_ratio"):
        certainty_ratio(cosines, labels, "book")
