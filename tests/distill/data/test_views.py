import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from distill.data.views import (
    DRAWS,
    NEUTRAL,
    POLICIES,
    View,
    check_views,
    cut,
    draw_view,
    neutral_draws,
)
from distill.recipe.schema import VIEW_POLICIES
from students.errors import UserError

SCALE = (0.25, 1.0)


def fields(view):
    return view.box, view.flip, tuple(view.draws.tolist())


def views(policy, n, size=(90, 120), scale=SCALE):
    return [draw_view(policy, scale, 0, 0, i, size) for i in range(n)]


def test_policies_are_those_of_the_recipe():
    assert tuple(POLICIES) == VIEW_POLICIES


def test_a_view_is_a_function_of_its_key():
    torch.manual_seed(0)
    np.random.seed(0)
    key = (3, 5, 7)
    first = fields(draw_view("eupe", SCALE, *key, (90, 120)))
    torch.manual_seed(1)
    np.random.seed(1)
    before = np.random.get_state()[2]
    assert fields(draw_view("eupe", SCALE, *key, (90, 120))) == first
    assert np.random.get_state()[2] == before
    others = [(4, 5, 7), (3, 6, 7), (3, 5, 8), (5, 3, 7), (7, 5, 3), (3, 7, 5)]
    boxes = {draw_view("eupe", SCALE, *other, (90, 120)).box for other in others}
    assert first[0] not in boxes
    assert len(boxes) == len(others)


def test_large_keys_are_keys_too():
    boxes = {
        draw_view("eupe", SCALE, s, 0, i, (900, 900)).box for s in (0, 2**40) for i in (0, 2**40)
    }
    assert len(boxes) == 4


def test_crops_have_the_distribution_of_torchvisions():
    height, width, n = 90, 120, 2000
    boxes = np.array([v.box for v in views("eupe", n)])
    torch.manual_seed(0)
    image = torch.zeros(3, height, width)
    oracle = v2.RandomResizedCrop(8, scale=SCALE)
    drawn = [oracle.make_params([image]) for _ in range(n)]
    tops = {k: np.array([d[k] for d in drawn]) for k in ("top", "left", "height", "width")}
    ours = {
        "left": boxes[:, 0],
        "top": boxes[:, 1],
        "width": boxes[:, 2] - boxes[:, 0],
        "height": boxes[:, 3] - boxes[:, 1],
    }
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= width
    assert boxes[:, 3].max() <= height
    for name, values in ours.items():
        # Kolmogorov-Smirnov: 1.95 * sqrt(2 / n) is the 0.1 % point.
        grid = np.arange(-1, width + 1)
        cdf = [np.searchsorted(np.sort(v), grid, side="right") / n for v in (values, tops[name])]
        assert np.abs(cdf[0] - cdf[1]).max() < 1.95 * np.sqrt(2 / n), name


def test_aspects_are_log_uniform():
    n = 2000
    boxes = np.array([v.box for v in views("eupe", n, size=(1000, 1000), scale=(0.25, 0.25))])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert np.abs(width * height / 250_000 - 1).max() < 0.003
    place = (np.sort(np.log(width / height)) / np.log(4 / 3) + 1) / 2  # uniform in 0 to 1
    assert np.abs(place - (np.arange(n) + 0.5) / n).max() < 1.95 / np.sqrt(n)


def test_an_image_too_long_for_any_crop_gives_its_centre():
    # torchvision's fallback: the nearest legal aspect, centred.
    assert draw_view("eupe", (0.9, 1.0), 0, 0, 0, (10, 400)).box == (193, 0, 206, 10)
    assert draw_view("eupe", (0.9, 1.0), 0, 0, 0, (400, 10)).box == (0, 193, 10, 206)
    assert draw_view("eupe", SCALE, 0, 0, 0, (1, 1)).box == (0, 0, 1, 1)


def test_centre_and_flip():
    for view in views("centre", 20):
        assert fields(view) == ((15, 0, 105, 90), False, tuple(np.float32(NEUTRAL)))
    flips = views("flip", 400)
    assert {v.box for v in flips} == {(15, 0, 105, 90)}
    assert 150 < sum(v.flip for v in flips) < 250
    assert all(np.array_equal(v.draws, np.float32(NEUTRAL)) for v in flips)


def test_colour_draws_come_as_often_and_as_strong_as_said():
    drawn = views("eupe", 2000)
    draws = np.stack([v.draws for v in drawn])
    assert draws.shape == (2000, len(DRAWS))
    assert draws.dtype == np.float32
    neutral = np.float32(NEUTRAL)
    often = (draws != neutral).mean(0)
    assert np.abs(often - [0.8, 0.8, 0.8, 0.8, 0.5, 0.2]).max() < 0.05
    low, high = draws.min(0), draws.max(0)
    assert np.allclose(low, [0.6, 0.6, 0.8, -0.1, 0, 0], atol=0.01)
    assert np.allclose(high, [1.4, 1.4, 1.2, 0.1, 2.0, 1], atol=0.01)
    blurred = draws[draws[:, 4] > 0, 4]
    assert 0.1 <= blurred.min() < 0.12
    jittered = draws[draws[:, 0] != 1]
    independent = np.corrcoef(
        np.column_stack([jittered, [v.flip for v in drawn if v.draws[0] != 1]]).T
    )
    assert np.abs(independent - np.eye(7)).max() < 0.12


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("canvas", [24, 48, 96])
def test_cut_is_pillows_crop_and_resize(canvas, flip):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    picture = Image.fromarray(small).resize((120, 90), Image.Resampling.BICUBIC)
    view = View((11, 5, 70, 83), flip, np.float32(NEUTRAL))
    got = cut(torch.from_numpy(np.array(picture)).permute(2, 0, 1), view, canvas)
    want = picture.crop((11, 5, 70, 83)).resize((canvas, canvas), Image.Resampling.BICUBIC)
    if flip:
        want = want.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert got.dtype == torch.uint8
    assert got.shape == (3, canvas, canvas)
    assert np.abs(got.permute(1, 2, 0).numpy().astype(int) - np.asarray(want)).max() <= 1


def test_wrong_policies_and_scales():
    with pytest.raises(UserError, match="did you mean 'eupe'"):
        draw_view("eup", SCALE, 0, 0, 0, (8, 8))
    for scale in ([0, 1], [0.5, 0.2], [0.5, 1.2], [0.5], [float("nan"), 1]):
        with pytest.raises(UserError, match="scale of views"):
            check_views("eupe", scale)
    check_views("eupe", [1, 1])


def test_neutral_draws():
    assert neutral_draws(3).tolist() == [list(NEUTRAL)] * 3
