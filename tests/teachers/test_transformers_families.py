"""What holds for every family over transformers: descriptions, strict weights, layers, pickles."""

import json
import pickle
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import KINDS
from torch.testing import assert_close

from students.errors import UserError
from teachers import TeacherSpec, describe_teacher, families, load_teacher
from teachers.checkpoint import Checkpoint

OLDER = {"dinov2": "dinov2", "dinov2_with_registers": "dinov2", "siglip": "siglip"}
ALL = OLDER | KINDS
WITH_LAYERS = [kind for kind in ALL if kind != "dinov3_convnext"]
A_WEIGHT = {
    "dinov2": "layernorm.weight",
    "dinov2_with_registers": "embeddings.register_tokens",
    "siglip": "vision_model.head.probe",
    "dinov3_vit": "layer.2.layer_scale1.lambda1",
    "dinov3_convnext": "stages.2.layers.1.gamma",
    "depth_anything": "backbone.embeddings.position_embeddings",
    "siglip2": "vision_model.embeddings.position_embedding.weight",
    "siglip2_vision_model": "post_layernorm.bias",
    "clip": "vision_model.pre_layrnorm.bias",
    "clip_vision_model": "post_layernorm.weight",
    "clip_with_projection": "vision_model.embeddings.class_embedding",
    "metaclip_2": "vision_model.post_layernorm.weight",
    "metaclip_2_vision_model": "pre_layrnorm.weight",
    "radio": "radio_model.model.patch_generator.cls_token.token",
}


@pytest.fixture
def spec(checkpoint):
    return lambda kind, **more: TeacherSpec(ALL[kind], str(checkpoint(kind)[0]), **more)


@pytest.fixture
def copy(checkpoint, tmp_path):
    def make(kind):
        shutil.copytree(checkpoint(kind)[0], tmp_path / kind)
        return TeacherSpec(ALL[kind], str(tmp_path / kind)), tmp_path / kind

    return make


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# ---- what is known without weights


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_the_vision_encoders(kind, spec):
    teacher = load_teacher(spec(kind))
    assert teacher.info.parameters == sum(p.numel() for p in teacher.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_the_configuration_alone_says_the_same(kind, spec, tmp_path):
    whole = describe_teacher(spec(kind))
    shutil.copy(Path(whole.source) / "config.json", tmp_path)
    unfetched = Checkpoint("org/name", tmp_path, fetched=False)
    info = families()[ALL[kind]].describe(TeacherSpec(ALL[kind], "org/name"), unfetched)
    assert not info.fetched
    for name in ("size", "stride", "summary_dim", "dense_dim", "layers", "parameters"):
        assert getattr(info, name) == getattr(whole, name) is not None or name == "layers"
    assert (info.layers is None) == (kind == "dinov3_convnext")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "radio"])
def test_statistics_are_the_preprocessors(kind, spec):
    info = describe_teacher(spec(kind))
    assert (info.mean, info.std) == ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    assert info.statistics_from == "preprocessor_config.json"


@pytest.mark.parametrize("kind", [k for k in KINDS if not k.startswith(("radio", "siglip2"))])
def test_native_size_is_the_preprocessors_crop(kind, copy):
    one, folder = copy(kind)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"crop_size": 40}))
    assert describe_teacher(one).size == 40


# ---- frozen, and no dearer than the library


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_and_the_same_every_time(kind, spec, pixels):
    teacher = load_teacher(spec(kind))
    assert teacher.train() is teacher
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    images = pixels(64)
    first, second = teacher(images), teacher(images)
    assert torch.equal(first.dense, second.dense)
    assert torch.equal(first.summary, second.summary)
    assert not first.dense.requires_grad
    assert not first.dense.is_inference()


@pytest.mark.parametrize("kind", KINDS)
def test_own_dtype_whatever_autocast_is_around_it(kind, spec, pixels):
    teacher = load_teacher(spec(kind, dtype="bfloat16"))
    plain = teacher(pixels(64))
    with torch.autocast("cpu", torch.float16):
        features = teacher(pixels(64))
        words = teacher.text_tower and teacher.text_tower(["a red"])
    assert features.dense.dtype == features.summary.dtype == torch.bfloat16
    assert torch.equal(features.dense, plain.dense)
    if words is not None:
        assert words.dtype == torch.bfloat16
        assert teacher.text_tower.project(features.summary).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ALL)
def test_nothing_is_kept_or_copied_that_was_not_asked_for(kind, spec, pixels, monkeypatch):
    teacher = load_teacher(spec(kind))
    asked, forward = [], type(teacher.model).forward

    def spy(model, *args, **kwargs):
        asked.append(kwargs)
        return forward(model, *args, **kwargs)

    monkeypatch.setattr(type(teacher.model), "forward", spy)
    dense = teacher(pixels(64)).dense
    assert len(asked) == 1
    assert not any(name.startswith("output_") for name in asked[0])
    assert dense._base is not None


# ---- earlier layers


@pytest.mark.parametrize("kind", WITH_LAYERS)
def test_the_last_layer_is_no_layer(kind, spec, pixels):
    last = load_teacher(spec(kind))
    depth = last.info.layers
    assert depth == last.model.config.num_hidden_layers
    named = load_teacher(spec(kind, layer=depth))(pixels(32))
    assert_close(named.dense, last(pixels(32)).dense, atol=1e-6, rtol=0)
    first = load_teacher(spec(kind, layer=1))(pixels(32))
    assert (first.dense - named.dense).abs().max() > 0.1
    assert_close(first.summary, named.summary, atol=1e-6, rtol=0)
    for layer in (0, depth + 1):
        with pytest.raises(UserError, match=rf"layer {layer} is not one of 1 to {depth}"):
            describe_teacher(spec(kind, layer=layer))


def test_a_convnext_offers_no_layer(spec):
    with pytest.raises(UserError, match="offers no earlier layer"):
        describe_teacher(spec("dinov3_convnext", layer=1))


# ---- every weight is accounted for


def test_every_kind_has_its_weight():
    assert set(A_WEIGHT) == set(ALL)


@pytest.mark.parametrize("kind", KINDS)
def test_missing_unexpected_and_misshapen_weights(kind, copy):
    one, folder = copy(kind)
    name = A_WEIGHT[kind]
    taken = load_file(folder / "model.safetensors")[name]
    change_weights(folder, lambda w: w.update({name: taken[..., :-1].contiguous()}))
    with pytest.raises(UserError, match=r"1 of another shape: "):
        load_teacher(one)
    change_weights(folder, lambda w: w.pop(name))
    change_weights(folder, lambda w: w.update({"classifier.bias": torch.zeros(2)}))
    with pytest.raises(UserError, match=r": 1 missing: \S+; 1 unexpected: classifier.bias$"):
        load_teacher(one)


# ---- pickles


def pickled(folder):
    """Its weights as torch.save writes them, and no others."""
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("kind", ALL)
def test_a_pickle_is_read_on_request(kind, copy, spec, pixels):
    one, folder = copy(kind)
    whole = load_teacher(spec(kind))
    pickled(folder)
    with pytest.raises(UserError, match=r"pytorch_model.bin.*allow_pickle: true"):
        load_teacher(one)
    teacher = load_teacher(replace(one, allow_pickle=True))
    assert teacher.info.parameters == whole.info.parameters
    assert torch.equal(teacher(pixels(64)).dense, whole(pixels(64)).dense)
    assert torch.equal(teacher(pixels(64)).summary, whole(pixels(64)).summary)


@pytest.mark.parametrize("kind", ["siglip", "siglip2", "clip", "metaclip_2"])
def test_a_text_tower_from_a_pickle(kind, copy, spec):
    one, folder = copy(kind)
    pickled(folder)
    tower = load_teacher(replace(one, allow_pickle=True)).text_tower
    plain = load_teacher(spec(kind)).text_tower
    held, expected = tower.state_dict(), plain.state_dict()
    assert held.keys() == expected.keys()
    assert all(torch.equal(held[name], expected[name]) for name in held)
    # Two copies of one model may lie differently in memory, which moves the last bits.
    torch.testing.assert_close(tower(["a red"]), plain(["a red"]), atol=1e-6, rtol=1e-5)


class Evil:
    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return Path.write_text, (self.witness, "run")


def write_pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("kind", ["dinov2", "dinov3_vit", "clip", "siglip2", "radio"])
@pytest.mark.parametrize("save", [torch.save, write_pickle])
def test_a_pickle_that_runs_code_is_refused_even_then(kind, save, copy, tmp_path):
    one, folder = copy(kind)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    witness = tmp_path / "witness"
    save(weights | {"evil": Evil(witness)}, folder / "pytorch_model.bin")
    for use in (describe_teacher, load_teacher):
        with pytest.raises(UserError, match=r"pytorch_model.bin cannot be read as weights alone"):
            use(replace(one, allow_pickle=True))
    assert not witness.exists()
    with suppress(RuntimeError):
        torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert witness.exists()  # it would have run
