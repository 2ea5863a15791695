import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from students.errors import UserError
from teachers import TeacherSpec, describe_teacher, load_teacher


@pytest.fixture
def copy(checkpoint, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint("depth_anything")[0], folder)
    return folder


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (24, 40), (34, 46)])
def test_equals_the_librarys_backbone(size, checkpoint, pixels, normalise):
    folder, model = checkpoint("depth_anything")
    images = pixels(*size)
    with torch.no_grad():
        tokens = model.backbone(normalise(images)).feature_maps[-1]
    features = load_teacher(TeacherSpec("depth_anything", str(folder)))(images, size)
    patches = tokens[:, 1:].reshape(3, size[0] // 4, size[1] // 4, 24)
    assert_close(features.summary, tokens[:, 0], atol=1e-5, rtol=0)
    assert_close(features.dense, patches, atol=1e-5, rtol=0)


def test_layer_is_what_the_depth_head_reads(checkpoint, pixels, normalise):
    folder, model = checkpoint("depth_anything")
    with torch.no_grad():
        first, last = model.backbone(normalise(pixels(32))).feature_maps  # after blocks 1 and 3
    features = load_teacher(TeacherSpec("depth_anything", str(folder), layer=1))(pixels(32))
    assert_close(features.dense.flatten(1, 2), first[:, 1:], atol=1e-5, rtol=0)
    assert_close(features.summary, last[:, 0], atol=1e-5, rtol=0)


def test_depth_head_and_neck_are_neither_read_nor_missed(copy, checkpoint, pixels):
    folder, _ = checkpoint("depth_anything")
    whole = load_teacher(TeacherSpec("depth_anything", str(folder)))

    def behead(weights):
        for name in [name for name in weights if not name.startswith("backbone.")]:
            del weights[name]

    change_weights(copy, behead)
    teacher = load_teacher(TeacherSpec("depth_anything", str(copy)))
    assert teacher.info.parameters == whole.info.parameters
    assert teacher.info.parameters == sum(p.numel() for p in teacher.parameters())
    assert torch.equal(teacher(pixels(32)).dense, whole(pixels(32)).dense)


def test_every_weight_of_the_backbone_must_be_there(copy):
    change_weights(copy, lambda w: w.pop("backbone.encoder.layer.2.norm2.bias"))
    with pytest.raises(UserError, match=r"1 missing: encoder.layer.2.norm2.bias$"):
        load_teacher(TeacherSpec("depth_anything", str(copy)))


def test_a_weight_under_two_names(copy):
    change_weights(copy, lambda w: w.update({"layernorm.bias": w["backbone.layernorm.bias"] + 1}))
    with pytest.raises(UserError, match=r"1 unexpected: layernorm.bias$"):
        load_teacher(TeacherSpec("depth_anything", str(copy)))


def test_another_encoder(copy):
    config = json.loads((copy / "config.json").read_text())
    config["backbone_config"] = {"model_type": "swin"}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"model_type 'swin' of its backbone_config.*dinov2"):
        describe_teacher(TeacherSpec("depth_anything", str(copy)))
