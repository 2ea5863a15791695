"""Features of a frozen encoder: eval mode, no gradient, whole data set, float32 on the CPU."""

import numpy as np
import pytest
import torch
from torch import nn

from distill.probes.extract import apply_space, extract
from students import Features


class Careless(nn.Module):
    """Dropout and batch statistics: in train mode its features are neither repeatable nor pure."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.BatchNorm2d(6), nn.Dropout(0.5))
        self.seen: list[tuple[int, int]] = []

    def forward(self, pixels, size=None):
        assert pixels.dtype == torch.float32
        assert pixels.min() >= 0
        assert pixels.max() <= 1
        assert not torch.is_grad_enabled()
        self.seen.append((len(pixels), size))
        dense = self.net(pixels).permute(0, 2, 3, 1)
        return Features(dense.mean((1, 2)), dense)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 3, 16, 16), dtype=np.uint8)


def test_a_train_mode_backbone_is_put_in_eval_and_back(images):
    encoder = Careless().train()
    encoder.net[2].eval()  # a mode of its own, to be kept
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    first, again = extract(encoder, images, 16), extract(encoder, images, 16)
    assert torch.equal(first.dense, again.dense)
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())
    assert [m.training for m in encoder.net] == [True, True, False]
    encoder.eval()
    with torch.no_grad():
        expected = encoder(torch.from_numpy(images).float() / 255)
    torch.testing.assert_close(first.dense, expected.dense)
    torch.testing.assert_close(first.summary, expected.summary)


def test_the_mode_comes_back_after_an_error(images):
    encoder = Careless().train()

    def planted(pixels, size=None):
        raise RuntimeError("planted")

    encoder.forward = planted
    with pytest.raises(RuntimeError, match="planted"):
        extract(encoder, images, 16)
    assert encoder.net[1].training


def test_no_gradient_and_every_image_once(images):
    encoder = Careless()
    features = extract(encoder, images, 16, batch=4)
    assert encoder.seen == [(4, 16), (4, 16), (2, 16)]
    assert features.summary.shape == (10, 6)
    assert features.dense.shape == (10, 4, 4, 6)
    assert not features.dense.requires_grad
    torch.testing.assert_close(features.dense, extract(encoder, images, 16, batch=10).dense)


def test_half_precision_and_missing_summary(images):
    def encoder(pixels, size=None):
        return Features(None, pixels.permute(0, 2, 3, 1).half())

    features = extract(encoder, images, 16)
    assert features.summary is None
    assert features.dense.dtype == torch.float32


def test_wrong_images_are_refused(images):
    with pytest.raises(ValueError, match="float32"):
        extract(Careless(), images.astype(np.float32), 16)
    with pytest.raises(ValueError, match="0 of uint8"):
        extract(Careless(), images[:0], 16)


def test_apply_space_is_the_space_of_all_rows():
    layer = nn.Linear(6, 3)
    given = Features(torch.randn(7, 6), torch.randn(7, 2, 2, 6))
    mapped = apply_space(lambda f: f.map(lambda _, t: layer(t)), given, batch=3)
    torch.testing.assert_close(mapped.summary, layer(given.summary).detach())
    torch.testing.assert_close(mapped.dense, layer(given.dense).detach())
    assert not mapped.dense.requires_grad
    with pytest.raises(ValueError, match="neither"):
        apply_space(lambda f: f, Features(None, None))
