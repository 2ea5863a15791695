"""The traced module is the student: what is changed in it for tracing changes nothing."""

import pytest
import torch
from format_students import TINY, tiny_student

from distill.formats import exported_module
from students import build_student


def same(student, height, width):
    pixels = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = student(pixels, (height, width))
        given = [exported_module(student, fused_attention=fused)(pixels) for fused in (True, False)]
    for summary, dense in given:
        torch.testing.assert_close(summary, ours.summary, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(dense, ours.dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", TINY)
def test_it_gives_the_students_features_at_any_size(kind):
    student = tiny_student(kind)
    before = {name: p.clone() for name, p in student.named_parameters()}
    for height, width in ((32, 32), (24, 56), (64, 16)):
        same(student, height, width)
    after = dict(student.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("normalize", ["max", "min", "separate"])
@pytest.mark.parametrize("half", [True, False])
def test_rotary_positions_are_timms_own(normalize, half):
    student = tiny_student("vit")
    student.model.rope.normalize_coords = normalize
    student.model.rope.rotate_half = half
    copied = exported_module(student).model.rope
    for shape in ((4, 4), (3, 7), (9, 2)):
        ours, theirs = copied.get_embed(shape), student.model.rope.get_embed(shape)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_pixel_statistics_are_folded_in():
    student = tiny_student("vit")
    pixels = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        normal = exported_module(student)(pixels)[0]
        student.normalise.mean.add_(0.3)
        shifted = exported_module(student)(pixels)[0]
    assert (normal - shifted).abs().max() > 1e-3


def test_a_student_in_train_mode_is_exported_in_eval():
    student = build_student(
        TINY["vit"][0], size=32, overrides={**TINY["vit"][1], "drop_path_rate": 0.9}
    ).train()
    module = exported_module(student)
    assert student.training
    assert not module.training
    assert not any(p.requires_grad for p in module.parameters())
    pixels = torch.rand(1, 3, 32, 32)
    assert torch.equal(module(pixels)[0], module(pixels)[0])
