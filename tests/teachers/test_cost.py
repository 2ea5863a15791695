"""What a recipe may say of a teacher beside its weights: micro-batches and pixel statistics."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from students.errors import UserError
from teachers import Teacher, TeacherSpec, describe_teacher, load_teacher

FAMILIES = {"dinov2": "dinov2", "siglip": "siglip", "sam": "sam"}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("micro_batch", [1, 2, 3, 8])
def test_micro_batches_do_not_change_the_features(
    kind, micro_batch, checkpoint, pixels, monkeypatch
):
    tokens = ("dense",) if kind == "sam" else ("summary", "dense")
    spec = TeacherSpec(FAMILIES[kind], str(checkpoint(kind)[0]), tokens=tokens)
    whole, parts = load_teacher(spec), load_teacher(replace(spec, micro_batch=micro_batch))
    seen = []
    encode = type(parts).encode
    monkeypatch.setattr(
        type(parts), "encode", lambda self, x: (seen.append(len(x)), encode(self, x))[1]
    )
    images = pixels(32)
    expected = whole(images)
    seen.clear()
    features = parts(images)
    assert sum(seen) == 3
    assert max(seen) == min(micro_batch, 3)
    for name in tokens:
        assert_close(features.get(name), expected.get(name), atol=1e-5, rtol=0)


def test_statistics_of_the_recipe_go_before_the_checkpoints(checkpoint, pixels):
    folder, model = checkpoint("dinov2")
    own = TeacherSpec("dinov2", str(folder))
    assert describe_teacher(own).statistics_from == "preprocessor_config.json"
    spec = replace(own, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    info = describe_teacher(spec)
    assert (info.mean, info.std, info.statistics_from) == (spec.mean, spec.std, "the recipe")
    images = pixels(32)
    by_hand = (images - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(
        3, 1, 1
    )
    with torch.no_grad():
        expected = model(by_hand).last_hidden_state[:, 0]
    assert_close(load_teacher(spec)(images).summary, expected, atol=1e-5, rtol=0)


def test_a_checkpoint_without_statistics_loads_with_the_recipes(checkpoint, tmp_path, pixels):
    folder, model = checkpoint("dinov2")
    model.save_pretrained(tmp_path)
    spec = TeacherSpec("dinov2", str(tmp_path))
    with pytest.raises(UserError, match=r"no preprocessor_config.json.*mean: \[0.5"):
        load_teacher(spec)
    known = describe_teacher(TeacherSpec("dinov2", str(folder)))
    given = load_teacher(replace(spec, mean=known.mean, std=known.std))
    images = pixels(32)
    assert_close(given(images).dense, load_teacher(known.spec)(images).dense, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"micro_batch": 0}, "micro_batch 0"),
        ({"mean": (0.5, 0.5, 0.5)}, "mean and std together"),
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0, 1.0)}, "three numbers"),
        ({"mean": (0.5, 0.5, 0.5), "std": (1.0, 0.0, 1.0)}, "above 0"),
        ({"layer": 9}, "layer 9|no earlier layer"),
    ],
)
def test_what_cannot_be_is_said(change, message, checkpoint):
    spec = replace(TeacherSpec("dinov2", str(checkpoint("dinov2")[0])), **change)
    with pytest.raises(UserError, match=message):
        describe_teacher(spec)


def test_a_teacher_keeps_no_gradient_in_micro_batches(checkpoint, pixels):
    spec = TeacherSpec("dinov2", str(checkpoint("dinov2")[0]), micro_batch=2)
    teacher = load_teacher(spec)
    assert isinstance(teacher, Teacher)
    assert teacher(pixels(32)).dense.grad_fn is None
