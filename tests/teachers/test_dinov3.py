import pytest
import torch
from torch.testing import assert_close

from teachers import TeacherSpec, describe_teacher, load_teacher


def dino(folder, **more):
    return load_teacher(TeacherSpec("dinov3", str(folder), **more))


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (24, 40), (34, 46)])
def test_vit_equals_the_library(size, checkpoint, pixels, normalise):
    folder, model = checkpoint("dinov3_vit")
    images = pixels(*size)
    with torch.no_grad():
        tokens = model(normalise(images)).last_hidden_state
    features = dino(folder)(images, size)
    patches = tokens[:, 3:].reshape(3, size[0] // 4, size[1] // 4, 24)  # after class, 2 registers
    assert_close(features.summary, tokens[:, 0], atol=1e-5, rtol=0)
    assert_close(features.dense, patches, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(64, 64), (96, 96), (64, 96), (100, 70)])
def test_convnext_equals_the_library(size, checkpoint, pixels, normalise):
    folder, model = checkpoint("dinov3_convnext")
    images = pixels(*size)
    with torch.no_grad():
        tokens = model(normalise(images)).last_hidden_state
    features = dino(folder)(images, size)
    patches = tokens[:, 1:].reshape(3, size[0] // 32, size[1] // 32, 12)
    assert_close(features.summary, tokens[:, 0], atol=1e-5, rtol=0)
    assert_close(features.dense, patches, atol=1e-5, rtol=0)


def test_convnext_pools_before_the_norm(checkpoint, pixels, normalise):
    folder, model = checkpoint("dinov3_convnext")
    with torch.no_grad():
        maps = model(normalise(pixels(64)), output_hidden_states=True).hidden_states[-1]
        pooled = model.layer_norm(maps.mean((2, 3)))
        dense = model.layer_norm(maps.permute(0, 2, 3, 1))
    features = dino(folder)(pixels(64))
    assert_close(features.summary, pooled, atol=1e-5, rtol=0)
    assert_close(features.dense, dense, atol=1e-5, rtol=0)
    assert (features.summary - features.dense.mean((1, 2))).abs().max() > 0.1


def test_what_their_configurations_say(checkpoint):
    vit = describe_teacher(TeacherSpec("dinov3", str(checkpoint("dinov3_vit")[0])))
    assert (vit.size, vit.stride, vit.summary_dim, vit.dense_dim) == (32, 4, 24, 24)
    convnext = describe_teacher(TeacherSpec("dinov3", str(checkpoint("dinov3_convnext")[0])))
    widths = (convnext.summary_dim, convnext.dense_dim)
    assert (convnext.size, convnext.stride, *widths) == (64, 32, 12, 12)
    assert (vit.layers, convnext.layers) == (3, None)


def test_positions_are_not_drawn(checkpoint, pixels):
    folder, model = checkpoint("dinov3_vit")
    images = pixels(32)
    with torch.no_grad():
        drawn = [model.train()(images).last_hidden_state for _ in range(2)]
    model.eval()
    assert (drawn[0] - drawn[1]).abs().max() > 1e-3  # what it would be in train mode
    teacher = dino(folder)
    teacher.train()
    first = teacher(images)
    assert torch.equal(first.dense, teacher(images).dense)
    assert torch.equal(first.summary, teacher(images).summary)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_layer_is_after_the_final_norm(layer, checkpoint, pixels, normalise):
    folder, model = checkpoint("dinov3_vit")
    with torch.no_grad():
        out = model(normalise(pixels(24, 40)), output_hidden_states=True)
        dense = model.norm(out.hidden_states[layer])[:, 3:].reshape(3, 6, 10, 24)
    features = dino(folder, layer=layer)(pixels(24, 40), (24, 40))
    assert_close(features.dense, dense, atol=1e-5, rtol=0)
    assert_close(features.summary, out.last_hidden_state[:, 0], atol=1e-5, rtol=0)
