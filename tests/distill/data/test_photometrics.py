import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from distill.data.photometrics import SOLARISE_THRESHOLD, blur_radius, photometrics
from distill.data.views import DRAWS, NEUTRAL, draw_view, neutral_draws


def pictures(n, size, seed=0):
    """Smooth noise with flat, grey, black, white and saturated rows."""
    g = torch.Generator().manual_seed(seed)
    small = torch.rand(n, 3, 6, 6, generator=g)
    x = torch.nn.functional.interpolate(small, size, mode="bicubic").mul(1.4).sub(0.2).clamp(0, 1)
    x[0] = x[0, :1]  # grey: no hue
    x[1, :, :4], x[1, :, 4:8] = 0, 1
    x[2, 0], x[2, 1] = 1, 0
    return x


def by_torchvision(image, row):
    """One image, (3, S, S), through torchvision's own functions."""
    brightness, contrast, saturation, hue, sigma, solarise = row.tolist()
    size = image.shape[-1]
    image = tv.adjust_brightness(image, brightness)
    image = tv.adjust_contrast(image, contrast)
    image = tv.adjust_saturation(image, saturation)
    image = tv.adjust_hue(image, hue)
    if sigma:
        taps = 2 * blur_radius(size) + 1
        image = tv.gaussian_blur(image, [taps, taps], [sigma * size / 224] * 2)
    return tv.solarize(image, SOLARISE_THRESHOLD) if solarise else image


def random_draws(n, seed=0):
    rows = [draw_view("eupe", (0.25, 1), seed, 0, i, (64, 64)).draws for i in range(n)]
    return torch.stack([torch.from_numpy(row) for row in rows])


def assert_equal(got, want, draws):
    """Solarisation jumps at its threshold, so a rounding error there is no error."""
    off = (got - want).abs()
    jumped = (draws[:, 5] > 0).view(-1, 1, 1, 1) & ((got - 0.5).abs() < 0.003)
    assert off[~jumped].max() < 1e-3
    assert off[~jumped].mean() < 1e-5
    assert jumped.float().mean() < 0.02


@pytest.mark.parametrize("size", [32, 64, 224])
def test_a_batch_is_torchvision_image_by_image(size):
    n = 24 if size < 200 else 6
    x, draws = pictures(n, size), random_draws(n)
    kept = x.clone()
    got = photometrics(x, draws)
    assert torch.equal(x, kept)
    want = torch.stack([by_torchvision(*pair) for pair in zip(x, draws, strict=True)])
    assert_equal(got, want, draws)
    assert got.min() >= 0
    assert got.max() <= 1


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("brightness", [0.6, 1.4, 0.0]),
        ("contrast", [0.6, 1.4, 0.0]),
        ("saturation", [0.8, 1.2, 0.0]),
        ("hue", [-0.1, 0.1, 0.5, -0.5]),
        ("sigma", [0.1, 0.7, 2.0]),
        ("solarise", [1.0]),
    ],
)
def test_each_change_alone(column, values):
    x = pictures(8, 48)
    for value in values:
        draws = neutral_draws(8)
        draws[:, DRAWS.index(column)] = value
        want = torch.stack([by_torchvision(*pair) for pair in zip(x, draws, strict=True)])
        torch.testing.assert_close(photometrics(x, draws), want, rtol=0, atol=1e-4)
        smooth = column == "sigma" and value == 0.1  # narrower than a pixel at this size
        assert smooth or not torch.equal(want, x)


def test_rows_that_do_not_change_stay_bit_for_bit():
    x, draws = pictures(12, 32), random_draws(12, seed=3)
    draws[::3] = torch.tensor(NEUTRAL)
    got = photometrics(x, draws)
    assert torch.equal(got[::3], x[::3])
    assert not torch.equal(got[1], x[1])
    assert torch.equal(photometrics(x, neutral_draws(12)), x)


def test_a_row_does_not_depend_on_its_batch():
    x, draws = pictures(10, 32), random_draws(10)
    together = photometrics(x, draws)
    for i in range(10):
        alone = photometrics(x[i : i + 1], draws[i : i + 1])[0]
        torch.testing.assert_close(together[i], alone, rtol=0, atol=1e-5)


def test_tiny_pictures_and_half_precision():
    x, draws = pictures(8, 8)[..., :2, :2], random_draws(8)
    assert photometrics(x, draws).shape == (8, 3, 2, 2)
    half = photometrics(pictures(8, 32).bfloat16(), random_draws(8))
    assert half.dtype == torch.bfloat16
    assert half.isfinite().all()
    assert half.min() >= 0
    assert half.max() <= 1


def test_the_blur_grows_with_the_canvas():
    assert [blur_radius(s) for s in (56, 64, 224, 448)] == [1, 2, 4, 8]


def test_wrong_draws():
    x = pictures(4, 16)
    for draws in (neutral_draws(3), torch.ones(4, 5), neutral_draws(4).to("meta")):
        with pytest.raises(ValueError, match="on the CPU"):
            photometrics(x, draws)
