"""What EdgeTAM has beside what it shares with SAM 2 (test_sam2.py): a trunk of timm's."""

import json

import pytest
import tiny_sam
import torch
from torch.testing import assert_close

from students.errors import UserError
from teachers import TeacherSpec, load_teacher


@pytest.fixture
def edgetam(tmp_path):
    folder, model = tiny_sam.saved("edgetam", tmp_path)
    return TeacherSpec("edgetam", str(folder), tokens=("dense",)), folder, model


def test_batch_norms_keep_their_statistics(edgetam, pixels):
    spec, _, model = edgetam
    teacher = load_teacher(spec)
    before = {name: value.clone() for name, value in teacher.model.named_buffers()}
    together = teacher.train()(pixels(64)).dense
    alone = torch.cat([teacher(image[None]).dense for image in pixels(64)])
    assert_close(alone, together, atol=1e-4, rtol=0)
    assert any(name.endswith("running_var") for name in before)
    for name, value in model.vision_encoder.named_buffers():
        assert torch.equal(before[name], value)
        assert torch.equal(teacher.model.get_buffer(name), value)


def test_a_configuration_without_its_trunk_is_an_error(edgetam):
    """The library takes a ResNet-50 for it."""
    spec, folder, _ = edgetam
    config = json.loads((folder / "config.json").read_text())
    del config["vision_config"]["backbone_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"missing: backbone.timm_model.bn1.bias"):
        load_teacher(spec)
