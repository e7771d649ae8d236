"""Encoders and prompt adherence: official folders through the real code, with random weights."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

from evaluation.adherence import (
    ClipScorer,
    attribute_agreement,
    clip_scores,
    looks_kept,
    parse_prompt,
    prompts_of,
    read_prompts,
    seen_in,
)
from evaluation.encoders import (
    ClipEncoder,
    CmmdEncoder,
    DinoV2Encoder,
    MaeEncoder,
    encode_set,
    make_encoder,
    normalised,
)
from evaluation.face_sets import find_faces
from evaluation.image_sets import method_samples
from tests.evaluation_world import BLACK, GREEN, RED, ColourAnalyser, paint
from tests.tiny_base import make_tokenizer
from utils.errors import UserError


@pytest.fixture(scope="module")
def pictures():
    return list(np.random.default_rng(0).integers(0, 256, (3, 96, 128, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory):
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    config = Dinov2Config(image_size=518, patch_size=14, **sizes)
    Dinov2Model(config).save_pretrained(folder := tmp_path_factory.mktemp("dinov2-tiny"))
    return folder


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=48,
        projection_dim=8,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    vision = CLIPVisionConfig(image_size=32, patch_size=8, projection_dim=8, **sizes)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=8)
    folder = tmp_path_factory.mktemp("clip-tiny")
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_dinov2_is_the_class_token_at_224_pixels(dino_folder, pictures):
    features = DinoV2Encoder(dino_folder)(pictures)
    network = Dinov2Model.from_pretrained(dino_folder).eval()
    statistics = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = torch.stack([normalised(image, 224, *statistics) for image in pictures])
    with torch.inference_mode():
        expected = network(pixels).last_hidden_state[:, 0]
    assert pixels.shape == (3, 3, 224, 224)
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_preprocessing_keeps_the_middle_and_standardises():
    image = np.full((50, 100, 3), 255, np.uint8)
    image[:, :20] = 0
    pixels = normalised(image, 50, (0.5, 0.5, 0.5), (0.25, 0.5, 1.0))
    assert pixels.shape == (3, 50, 50)  # columns 25 to 75 of the photo: no black left
    torch.testing.assert_close(pixels[:, 25, 25], torch.tensor([2.0, 1.0, 0.5]))


def test_clip_encoder_takes_the_image_half_of_a_full_checkpoint(clip_folder, pictures):
    features = CmmdEncoder(clip_folder)(pictures)
    assert features.shape == (3, 8)
    scorer = ClipScorer(clip_folder)
    prompts = ["photo of sks person", "face portrait photo of a male person", "photo of a person"]
    values = scorer(pictures, prompts)
    tokens = scorer.tokenizer(prompts, padding="max_length", max_length=48, return_tensors="pt")
    with torch.inference_mode():
        text = scorer.network(**tokens, pixel_values=torch.zeros(3, 3, 32, 32)).text_embeds.numpy()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(values, 100 * np.maximum((unit * text).sum(1), 0), atol=1e-3)


def test_clip_features_are_those_before_the_projection(clip_folder, pictures):
    """As dgm-eval takes them: times the projection they are the embedding that CMMD takes."""
    features, embeddings = ClipEncoder(clip_folder)(pictures), CmmdEncoder(clip_folder)(pictures)
    projection = CLIPModel.from_pretrained(clip_folder).visual_projection.weight.detach().numpy()
    assert features.shape == (3, 16)
    np.testing.assert_allclose(features @ projection.T, embeddings, atol=1e-4)


@pytest.fixture(scope="module")
def mae_folder(tmp_path_factory):
    """A masked autoencoder with its decoder, as facebook/vit-mae-large is published."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    decoder = dict(decoder_hidden_size=8, decoder_num_hidden_layers=1, decoder_num_attention_heads=2)
    config = ViTMAEConfig(image_size=224, patch_size=16, decoder_intermediate_size=16, **sizes, **decoder)
    ViTMAEForPreTraining(config).save_pretrained(folder := tmp_path_factory.mktemp("mae-tiny"))
    return folder


def test_mae_is_the_class_token_of_all_patches(mae_folder, pictures):
    """Equal to a plain vision transformer with the same weights, in which nothing can be masked."""
    features = MaeEncoder(mae_folder)(pictures)
    np.testing.assert_array_equal(features, MaeEncoder(mae_folder)(pictures))
    network = ViTMAEForPreTraining.from_pretrained(mae_folder).vit
    plain = ViTModel(ViTConfig(**network.config.to_dict()), add_pooling_layer=False).eval()
    state = network.state_dict()
    missing, unexpected = plain.load_state_dict(state, strict=False)
    assert not missing and not unexpected
    statistics = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = torch.stack([normalised(image, 224, *statistics) for image in pictures])
    with torch.inference_mode():
        expected = plain(pixels).last_hidden_state[:, 0]
    np.testing.assert_allclose(features, expected, atol=1e-5)


def write_folder(folder, config, state):
    """A model folder as the hub has them: config.json and model.safetensors."""
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def linear(name, outputs, inputs):
    return {f"{name}.weight": torch.randn(outputs, inputs) * 0.1, f"{name}.bias": torch.zeros(outputs)}


def norm(name, width):
    return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}


def test_dinov2_in_the_names_of_the_published_file(tmp_path, pictures):
    """facebook/dinov2-large: its config.json and tensor names, two narrow layers of random weights."""
    width = 12
    config = {
        "architectures": ["Dinov2Model"],
        "apply_layernorm": True,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": width,
        "image_size": 518,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-06,
        "layerscale_value": 1.0,
        "mlp_ratio": 4,
        "model_type": "dinov2",
        "num_attention_heads": 2,
        "num_channels": 3,
        "num_hidden_layers": 2,
        "patch_size": 14,
        "qkv_bias": True,
        "torch_dtype": "float32",
        "transformers_version": "4.31.0.dev0",
        "use_swiglu_ffn": False,
    }
    state = {
        "embeddings.cls_token": torch.randn(1, 1, width),
        "embeddings.mask_token": torch.zeros(1, width),
        "embeddings.position_embeddings": torch.randn(1, 37 * 37 + 1, width),
        "embeddings.patch_embeddings.projection.weight": torch.randn(width, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": torch.zeros(width),
    }
    for i in range(2):
        layer = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            state |= linear(f"{layer}.attention.attention.{part}", width, width)
        state |= linear(f"{layer}.attention.output.dense", width, width)
        state |= linear(f"{layer}.mlp.fc1", 4 * width, width) | linear(f"{layer}.mlp.fc2", width, 4 * width)
        state |= norm(f"{layer}.norm1", width) | norm(f"{layer}.norm2", width)
        state |= {f"{layer}.layer_scale{k}.lambda1": torch.ones(width) for k in (1, 2)}
    state |= norm("layernorm", width)
    encoder = make_encoder("dinov2", write_folder(tmp_path / "dinov2-large", config, state))
    assert encoder(pictures).shape == (3, width)
    with pytest.raises(UserError, match="norm2"):
        state.pop("encoder.layer.1.norm2.weight")
        make_encoder("dinov2", write_folder(tmp_path / "cut", config, state))


def test_clip_in_the_names_of_the_published_file(clip_folder, tmp_path, pictures):
    """openai/clip-vit-large-patch14 also holds position_ids, which transformers no longer has."""
    from safetensors.torch import load_file

    state = load_file(clip_folder / "model.safetensors")
    blocks = {name.split(".layers.0.")[1] for name in state if "text_model.encoder.layers.0." in name}
    assert {"self_attn.k_proj.weight", "layer_norm1.bias", "mlp.fc2.weight"} <= blocks
    names = {
        "vision_model.pre_layrnorm.weight",
        "vision_model.embeddings.class_embedding",
        "logit_scale",
        "visual_projection.weight",
        "text_projection.weight",
        "text_model.final_layer_norm.bias",
        "text_model.embeddings.token_embedding.weight",
    }
    assert names <= set(state)
    state["text_model.embeddings.position_ids"] = torch.arange(48)[None]
    state["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    config = json.loads((clip_folder / "config.json").read_text())
    folder = write_folder(tmp_path / "clip-vit-large-patch14", config, state)
    np.testing.assert_array_equal(ClipEncoder(folder)(pictures), ClipEncoder(clip_folder)(pictures))
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "tokenizer.json"):
        if (clip_folder / name).is_file():
            (folder / name).write_bytes((clip_folder / name).read_bytes())
    assert ClipScorer(folder)(pictures, ["photo of sks person"] * 3).shape == (3,)


def test_incomplete_or_absent_folders_are_refused_with_the_source(dino_folder, tmp_path):
    with pytest.raises(UserError, match="facebook/dinov2"):
        make_encoder("dinov2", tmp_path / "nowhere")
    with pytest.raises(UserError, match="clip_folder: the encoder clip"):
        make_encoder("clip")
    with pytest.raises(UserError, match="is unknown"):
        make_encoder("inception")
    from safetensors.torch import load_file, save_file

    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "config.json").write_text((dino_folder / "config.json").read_text())
    state = load_file(dino_folder / "model.safetensors")
    state.pop("layernorm.weight")
    save_file(state, tmp_path / "cut" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="layernorm.weight"):
        DinoV2Encoder(tmp_path / "cut")


@pytest.fixture
def samples(tmp_path):
    paint(tmp_path / "ID-Booth" / "ID_1", [RED, BLACK])
    paint(tmp_path / "ID-Booth" / "ID_2", [GREEN])
    prompts = [
        "face portrait photo of male sks person, forest background",
        "face side-portrait photo of old male sks person",
        "photo of sks person",
    ]
    names = ["ID_1/000.png", "ID_1/001.png", "ID_2/000.png"]
    lines = [json.dumps({"file_name": n, "prompt": p}) for n, p in zip(names, prompts, strict=True)]
    (tmp_path / "ID-Booth" / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return method_samples(tmp_path / "ID-Booth")


def test_image_encoders_see_all_images_face_encoders_the_faces(samples, tmp_path):
    analyser = ColourAnalyser(tmp_path, "a")
    faces = find_faces(samples, analyser)
    rows, labels = encode_set(faces, make_encoder("pixels"))
    assert rows.shape == (3, 768) and labels.tolist() == ["ID_1", "ID_1", "ID_2"] and rows[1].max() == -1
    for encoder in (make_encoder("recogniser", recogniser=analyser), make_encoder("pixels", crops=True)):
        rows, labels = encode_set(faces, encoder)
        assert len(rows) == 2 and labels.tolist() == ["ID_1", "ID_2"]


def test_prompts_are_read_by_file_name(samples, tmp_path):
    assert prompts_of(samples)[2] == "photo of sks person"
    (tmp_path / "ID-Booth" / "metadata.jsonl").write_text('{"file_name": "ID_1/000.png"}\n')
    with pytest.raises(UserError, match="line 1"):
        read_prompts(tmp_path / "ID-Booth")
    (tmp_path / "ID-Booth" / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match="not found"):
        read_prompts(tmp_path / "ID-Booth")


def test_prompt_grammar():
    full = parse_prompt("face side-portrait photo of middle-aged female sks person, night club background")
    assert full == {"gender": "female", "age": "middle-aged", "background": "night club", "pose": "side"}
    assert parse_prompt("face portrait photo of sks person") == {"pose": "frontal"}
    assert parse_prompt("photo of sks person") == {}


def test_attribute_agreement_counts_what_was_said(samples):
    class Sees:
        classes = {"gender": (), "age": (), "background": (), "pose": ()}

        def predict(self, images):
            seen = {"gender": "male", "age": "young", "background": "forest", "pose": "frontal"}
            return [seen] * len(images)

    found = attribute_agreement(samples, seen_in(samples, Sees()))
    assert found["gender"][0].tolist() == [True, True] and found["gender"][1].tolist() == ["ID_1", "ID_1"]
    assert found["age"][0].tolist() == [False]
    assert found["background"][0].tolist() == [True] and found["pose"][0].tolist() == [True, False]


def test_looks_kept_are_those_of_most_photos():
    """Two of three photos show red hair; of a photo itself, the other two decide."""
    photos = SimpleNamespace(paths=["a", "b", "c", "d"], labels=["ID_1"] * 3 + ["ID_2"])
    red, grey = ({"hair": hair, "skin": "tan", "glasses": "none", "pose": "side"} for hair in ("red", "grey"))
    shown = [red, red, grey, red]
    samples = SimpleNamespace(paths=["s", "t", "u", "v"], labels=["ID_1", "ID_1", "ID_2", "ID_3"])
    seen = [red | {"glasses": "glasses"}, grey, red | {"skin": "dark"}, red]
    found = looks_kept(samples, seen, photos, shown)
    assert {name: hits.tolist() for name, (hits, _) in found.items()} == {
        "kept": [True, False, False],
        "hair": [True, False, True],
        "skin": [True, True, False],
        "glasses": [False, True, True],
    }
    assert found["kept"][1].tolist() == ["ID_1", "ID_1", "ID_2"]
    photos = SimpleNamespace(paths=["a", "b", "c"], labels=["ID_1"] * 3)
    assert looks_kept(photos, shown[:3], photos, shown[:3])["hair"][0].tolist()[2] is False
    assert looks_kept(photos, [{"pose": "side"}] * 3, photos, [{"pose": "side"}] * 3) == {}


def test_clip_scores_of_a_set(samples, clip_folder):
    values, labels = clip_scores(samples, ClipScorer(clip_folder), batch_size=2)
    assert values.shape == (3,) and ((values >= 0) & (values <= 100)).all()
    assert labels.tolist() == ["ID_1", "ID_1", "ID_2"]
