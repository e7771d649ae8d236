"""Head pose: geometry, 6DRepNet's format, a pack's 3D landmarks, agreement with FSA-Net on real photos."""

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from arcface_files.faces import ARCFACE_TEMPLATE, FaceAnalyser
from configs.evaluation_config import EvaluationConfig
from evaluation.face_sets import find_faces
from evaluation.image_sets import ImageSet
from evaluation.inputs import MetricError
from evaluation.measure_sets import pose_method
from evaluation.pose import (
    FACE_MODEL,
    FIVE_OF_68,
    euler_angles,
    five_point_pose,
    pose_from_3d,
    pose_statistics,
    rotation_matrices,
)
from evaluation.pose_networks import (
    SixDRepNet,
    bordered,
    face_pose,
    load_sixdrepnet,
    network_angles,
    open_pack_landmarks,
    photo_crop,
    rotation_from_six,
    sixdrepnet_pose,
)
from utils.errors import UserError
from utils.images import load_image, save_png


def random_angles(count):
    return np.random.default_rng(0).uniform([-60, -30, -40], [60, 30, 40], (count, 3))


def test_angles_and_matrices_are_inverse_and_signed_as_documented():
    angles = random_angles(100)
    np.testing.assert_allclose(euler_angles(rotation_matrices(angles)), angles, atol=1e-9)
    nose, up = np.array([0, 0, 1.0]), np.array([0, -1.0, 0])
    assert (rotation_matrices([[30, 0, 0]])[0] @ nose)[0] < 0  # + yaw: nose to the image's left
    assert (rotation_matrices([[0, 20, 0]])[0] @ nose)[1] < 0  # + pitch: up, y points down
    assert (rotation_matrices([[0, 0, 20]])[0] @ up)[0] > 0  # + roll: clockwise, the crown goes right


def test_five_points_of_the_model_give_back_the_pose():
    angles = random_angles(200)
    points = FACE_MODEL @ rotation_matrices(angles)[:, :2].transpose(0, 2, 1)
    np.testing.assert_allclose(five_point_pose(0.7 * points + [80, 60]), angles, atol=1e-6)
    frontal = five_point_pose(ARCFACE_TEMPLATE[None])
    assert np.abs(frontal[0, [0, 2]]).max() < 2


def test_longer_faces_are_not_taken_for_raised_chins():
    longer = FACE_MODEL * [1, 1.12, 1]
    points = longer @ rotation_matrices([[20.0, 0, 0]])[:, :2].transpose(0, 2, 1)
    assert abs(five_point_pose(points)[0, 1]) < 4


def test_impossible_landmarks_are_refused():
    with pytest.raises(MetricError, match="coincide"):
        five_point_pose(np.ones((1, 5, 2)))
    with pytest.raises(MetricError, match="NaN"):
        five_point_pose(np.full((1, 5, 2), np.nan))
    assert five_point_pose(np.zeros((0, 5, 2))).shape == (0, 3)


def test_pose_from_3d_landmarks_whichever_way_z_points():
    angles = random_angles(50)
    five = FACE_MODEL @ rotation_matrices(angles).transpose(0, 2, 1)
    points = np.zeros((50, 68, 3))
    for k, group in enumerate(FIVE_OF_68):
        points[:, list(group)] = five[:, k : k + 1]
    for z in (1, -1):
        np.testing.assert_allclose(pose_from_3d(2 * points * [1, 1, z] + 7), angles, atol=1e-6)


def test_pose_statistics_by_hand():
    angles = np.array([[10.0, 0, 0], [20.0, 0, 0], [-30.0, 3, 0]])
    stats = pose_statistics(angles, ["a", "a", "b"])
    assert stats["yaw"]["mean"] == 0.0 and stats["yaw"]["per_identity"] == {"a": 5.0}
    assert stats["yaw"]["std"] == pytest.approx(np.std([10, 20, -30]))
    with pytest.raises(MetricError):
        pose_statistics(np.zeros((0, 3)), [])


def test_rotation_from_six_is_a_rotation_and_its_angles_match():
    torch.manual_seed(0)
    matrices = rotation_from_six(torch.randn(20, 6).double())
    torch.testing.assert_close(matrices @ matrices.transpose(1, 2), torch.eye(3).double().expand(20, 3, 3))
    pitch, yaw, roll = np.radians([10.0, 25.0, -5.0])
    rx = [[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]]
    ry = [[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]]
    rz = [[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]]
    composed = np.array(rz) @ np.array(ry) @ np.array(rx)
    np.testing.assert_allclose(network_angles(composed[None]), [[25.0, 10.0, -5.0]])
    six = torch.tensor(np.concatenate([composed[:, 0], composed[:, 1]]))[None]
    np.testing.assert_allclose(rotation_from_six(six)[0].numpy(), composed, atol=1e-12)


def test_official_sixdrepnet_file_loads_strictly(tmp_path):
    network = SixDRepNet()
    state = network.state_dict()
    # RepVGG-B1g2, deployed: 28 blocks with weight and bias, grouped in every second layer, and the regressor.
    assert len(state) == 2 * 28 + 2 and sum(v.numel() for v in state.values()) == 39_323_398
    assert state["layer0.rbr_reparam.weight"].shape == (64, 3, 3, 3)
    assert state["layer1.0.rbr_reparam.weight"].shape == (128, 64, 3, 3)
    assert state["layer1.1.rbr_reparam.weight"].shape == (128, 64, 3, 3)
    assert state["layer4.0.rbr_reparam.weight"].shape == (2048, 512, 3, 3)
    torch.save(state, tmp_path / "6DRepNet.pth")
    loaded = load_sixdrepnet(tmp_path / "6DRepNet.pth")
    angles = sixdrepnet_pose(loaded, np.zeros((1, 172, 172, 3), np.uint8))
    assert angles.shape == (1, 3) and np.isfinite(angles).all()
    with pytest.raises(UserError, match="thohemp"):
        load_sixdrepnet(tmp_path / "absent.pth")
    torch.save({"layer0.rbr_dense.conv.weight": torch.zeros(1)}, tmp_path / "train.pth")
    with pytest.raises(UserError, match="before deployment"):
        load_sixdrepnet(tmp_path / "train.pth")
    torch.save({"linear_reg.bias": torch.zeros(6)}, tmp_path / "short.pth")
    with pytest.raises(UserError, match="not 6DRepNet"):
        load_sixdrepnet(tmp_path / "short.pth")


def test_crops_for_the_network():
    crops = bordered(np.full((2, 112, 112, 3), 9, np.uint8), 30)
    assert crops.shape == (2, 172, 172, 3) and crops[0, 29].max() == 0 and crops[0, 30:142, 30:142].min() == 9
    image = np.arange(100, dtype=np.uint8)[None, :, None].repeat(80, 0).repeat(3, 2)
    crop = photo_crop(image, np.array([40.0, 30, 60, 50]), 2.0)
    assert crop.shape == (40, 40, 3) and crop[0, 0, 0] == 30
    assert photo_crop(image, np.array([90.0, 70, 110, 90]), 2.0)[-1, -1].max() == 0  # beyond the photo: black


def landmark_network(path, points):
    """An ONNX in the format of 1k3d68.onnx whose answer is always `points` (68, 3) in its own units."""
    answer = np.zeros((1, 3309), np.float32)
    answer[0, -204:] = points.ravel()
    nodes = [
        helper.make_node("ReduceMean", ["data"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Sub", ["mean", "mean"], ["zero"]),
        helper.make_node("Add", ["zero", "answer"], ["fc1"]),
    ]
    graph = helper.make_graph(
        nodes,
        "landmarks",
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, 192, 192])],
        [helper.make_tensor_value_info("fc1", TensorProto.FLOAT, [1, 3309])],
        [numpy_helper.from_array(answer, "answer")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))


def face_set(tmp_path, analyser_class):
    save_png(tmp_path / "face.png", np.full((112, 112, 3), 90, np.uint8))
    return find_faces(ImageSet("one", tmp_path, (tmp_path / "face.png",), ("ID_1",)), analyser_class)


def test_pack_landmarks_through_insightface(tmp_path):
    from tests.evaluation_world import ColourAnalyser

    points = np.zeros((68, 3), np.float32)
    five = FACE_MODEL @ rotation_matrices([[25.0, -8.0, 4.0]])[0].T / 100
    for k, group in enumerate(FIVE_OF_68):
        points[list(group)] = five[k]
    pack = tmp_path / "pack"
    pack.mkdir()
    landmark_network(pack / "1k3d68.onnx", points)
    faces = face_set(tmp_path, ColourAnalyser(tmp_path, "a"))
    angles = face_pose(faces, "pack_3d", pack=pack)
    np.testing.assert_allclose(angles, [[25.0, -8.0, 4.0]], atol=0.01)
    (pack / "1k3d68.onnx").rename(pack / "other.txt")
    with pytest.raises(UserError, match="no .onnx"):
        open_pack_landmarks(pack)
    with pytest.raises(UserError, match="pose_weights"):
        face_pose(faces, "6drepnet")
    for weights in (None, "nowhere.pth"):
        assert pose_method(EvaluationConfig(pose="6drepnet", pose_weights=weights)) == "five_point"


def fsanet(networks, image, box):
    """Yaw, pitch, roll of FSA-Net: square crop of 1.3 times the longer side, 64 pixels, BGR."""
    centre, side = (box[:2] + box[2:]) / 2, 1.3 * max(box[2] - box[0], box[3] - box[1])
    scale = 64 / side
    matrix = np.array([[scale, 0, 32 - centre[0] * scale], [0, scale, 32 - centre[1] * scale]])
    crop = cv2.warpAffine(image[..., ::-1], matrix, (64, 64)).astype(np.float32)
    blob = ((crop - 127.5) / 128).transpose(2, 0, 1)[None]
    return np.mean([network.run(None, {"input": blob})[0][0] for network in networks], axis=0)


def test_five_point_pose_agrees_with_fsanet_on_turned_heads(fixtures_dir):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    paths = [str(fixtures_dir / "headpose" / f"fsanet-{name}.onnx") for name in ("1x1", "var")]
    networks = [onnxruntime.InferenceSession(path, options) for path in paths]
    analyser = FaceAnalyser(fixtures_dir / "real_pack", det_size=320, device="cpu")
    theirs, points = [], []
    for name in [f"s{s}/{k}" for s in (1, 9, 20, 26, 29, 35) for k in range(1, 11)]:
        image = load_image(fixtures_dir / "images" / "att_faces" / f"{name}.png")
        face = analyser.detect([image])[0][0]
        theirs.append(fsanet(networks, image, face.box))
        points.append(face.landmarks)
    theirs, ours = np.array(theirs), five_point_pose(np.array(points))
    turned = np.abs(theirs[:, 0]) > 15
    assert turned.sum() >= 8 and (np.sign(ours[turned, 0]) == np.sign(theirs[turned, 0])).all()
    correlation = [np.corrcoef(ours[:, k], theirs[:, k])[0, 1] for k in range(3)]
    assert correlation[0] > 0.9 and correlation[1] > 0.5 and correlation[2] > 0.75
    assert np.abs(ours - theirs).mean(0) == pytest.approx([0, 0, 0], abs=6)
