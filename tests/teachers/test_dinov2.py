import pytest
import torch
from torch.testing import assert_close

from students.pixels import resize
from teachers import TeacherSpec, load_teacher

KINDS = {"dinov2": 1, "dinov2_with_registers": 4}  # tokens before the patches


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(32, 32), (48, 48), (24, 40), (34, 46)])
def test_equals_the_library(kind, size, checkpoint, pixels, normalise):
    folder, model = checkpoint(kind)
    teacher = load_teacher(TeacherSpec("dinov2", str(folder)))
    images = pixels(*size)
    with torch.no_grad():
        tokens = model(normalise(images)).last_hidden_state
    features = teacher(images, size)
    h, w = size[0] // 4, size[1] // 4
    patches = tokens[:, KINDS[kind] :].reshape(3, h, w, 24)
    assert_close(features.summary, tokens[:, 0], atol=1e-5, rtol=0)
    assert_close(features.dense, patches, atol=1e-5, rtol=0)


def test_features_are_after_the_final_norm(checkpoint, pixels, normalise):
    folder, model = checkpoint("dinov2")
    teacher = load_teacher(TeacherSpec("dinov2", str(folder)))
    with torch.no_grad():
        before = model(normalise(pixels(32)), output_hidden_states=True).hidden_states[-1]
        after = model.layernorm(before)
    dense = teacher(pixels(32)).dense.flatten(1, 2)
    assert_close(dense, after[:, 1:], atol=1e-5, rtol=0)
    assert (dense - before[:, 1:]).abs().max() > 0.1


def test_resizes_by_itself(checkpoint, pixels):
    folder, _ = checkpoint("dinov2")
    teacher = load_teacher(TeacherSpec("dinov2", str(folder)))
    large = pixels(80, 60)
    assert_close(teacher(large).dense, teacher(resize(large, 32)).dense)
    assert teacher(large, 40).dense.shape == (3, 10, 10, 24)


def test_dense_is_a_view_and_features_train_a_head(checkpoint, pixels):
    folder, _ = checkpoint("dinov2_with_registers")
    features = load_teacher(TeacherSpec("dinov2", str(folder)))(pixels(32))
    assert features.dense._base is not None
    assert not features.dense.is_inference()
    head = torch.nn.Linear(24, 2)
    head(features.dense).square().mean().backward()
    assert head.weight.grad.abs().sum() > 0
