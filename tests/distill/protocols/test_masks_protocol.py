"""Promptable masks on pictures of any size, in chunks, against a loop over objects."""

import numpy as np
import pytest
import torch
from in_memory import Owner, Pictures, given, setting
from scipy import ndimage
from torch.nn import functional as F

from distill.datasets.parts import Annotated, Instances
from distill.probes import masks as overlaps
from distill.probes.masks import squared_distance
from distill.probes.models import CannotProbe, NothingToScore
from distill.protocols import masks
from distill.protocols.masks import TASK

SIZES = [(40, 64), (70, 50), (48, 48), (33, 90), (64, 64), (50, 30)]
SIZE, GRID, MOST = 64, 16, 4


def objects(number):
    """One to four objects of odd numbers; in the last picture none, in the first a speck too."""
    height, width = SIZES[number]
    truth = torch.zeros(height, width, dtype=torch.int64)
    random = np.random.default_rng(number)
    for name in range(0 if number == 5 else 1 + number % 4):
        top, left = random.integers(0, height // 2), random.integers(0, width // 2)
        down, right = random.integers(8, height // 2), random.integers(8, width // 2)
        truth[top : top + down, left : left + right] = 5 + 300 * name
    if number == 0:
        truth[-2:, -2:] = 2
    return truth


def shown_objects(number, size=SIZE):
    """(size, size), numbered anew from 1."""
    truth = objects(number).numpy()
    rows = ((np.arange(size) + 0.5) * truth.shape[0] / size).astype(int)
    columns = ((np.arange(size) + 0.5) * truth.shape[1] / size).astype(int)
    found = truth[np.ix_(rows, columns)]
    names = [n for n in np.unique(found) if n]
    return sum((i * (found == n) for i, n in enumerate(names, 1)), np.zeros_like(found))


def dense_maps():
    """Channel k of a picture's map is where its object k + 1 is, blurred by noise."""
    shown = [torch.from_numpy(shown_objects(number)) for number in range(6)]
    numbers = torch.arange(1, MOST + 1)[:, None, None]
    shares = torch.stack([(found == numbers).float() for found in shown])
    maps = F.avg_pool2d(shares, SIZE // GRID)
    noise = 0.25 * torch.randn(maps.shape, generator=torch.Generator().manual_seed(0))
    return (maps + noise).permute(0, 2, 3, 1)


class Decoder:
    """Knows nothing but what it is given: the strongest channel at the point is the object."""

    def __init__(self):
        self.calls = []

    def __call__(self, dense, points, size):
        grid = dense.shape[1]
        self.calls.append((grid, size, *points.shape[:2]))
        fine = dense.permute(0, 3, 1, 2).repeat_interleave(4, 2).repeat_interleave(4, 3) - 0.5
        places = ((points + 0.5) / size * 4 * grid).long()
        logits = torch.stack(
            [
                torch.stack([torch.stack([-fine[i, 0].abs(), fine[i, fine[i, :, y, x].argmax()]])
                             for x, y in asked])
                for i, asked in enumerate(places)
            ]
        )  # fmt: skip
        return logits, torch.tensor([0.1, 0.9]).expand(*points.shape[:2], 2)


def slow(dense):
    """IoU of every object that is large enough, one by one."""
    values = []
    for number in range(6):
        shown = shown_objects(number)
        fine = dense[number].permute(2, 0, 1).repeat_interleave(4, 1).repeat_interleave(4, 2) - 0.5
        for name in range(1, shown.max() + 1):
            truth = shown == name
            if truth.sum() < 16:
                continue
            distance = ndimage.distance_transform_edt(np.pad(truth, 1))[1:-1, 1:-1]
            y, x = np.unravel_index(distance.argmax(), distance.shape)
            mask = fine[fine[:, y * fine.shape[1] // SIZE, x * fine.shape[2] // SIZE].argmax()]
            mask = F.interpolate(mask[None, None], (SIZE, SIZE), mode="bilinear")[0, 0].numpy() > 0
            values.append((mask & truth).sum() / (mask | truth).sum())
    return values


def pictures():
    """Each of one colour, its number."""
    return Pictures([torch.full((3, *s), n, dtype=torch.uint8) for n, s in enumerate(SIZES)])


def run(dense, teachers, reach, truth=objects, **more):
    source = pictures()
    part = Instances(Annotated(source, truth))
    features = given({source: (None, dense)}, "squash")
    spaces = {name: lambda f: f.map(lambda _, t: t * 2 - t) for name in reach}
    return TASK.run(
        setting("instances", part, features, SIZE, teachers=teachers, to_space=spaces, **more)
    )


@pytest.mark.parametrize(("chunk", "pixels"), [(8, 2**24), (2, 2 * SIZE**2), (1, 1)])
def test_against_a_loop_over_objects(chunk, pixels, monkeypatch):
    monkeypatch.setattr(masks, "_CHUNK", chunk)
    monkeypatch.setattr(overlaps, "_PIXELS", pixels)
    dense, decoder = dense_maps(), Decoder()
    values = slow(dense)
    outcome = run(dense, {"dino": Owner(), "sam": Owner(4, mask_decoder=decoder)}, ["sam"])
    assert outcome.samples == len(values) == 10
    assert outcome.values["iou"] == pytest.approx(100 * np.mean(values), abs=1e-3)
    assert 40 < outcome.values["iou"] < 95
    assert {call[:2] for call in decoder.calls} == {(GRID, SIZE)}
    assert max(call[2] * call[3] for call in decoder.calls) <= max(4, pixels // SIZE**2)


def test_small_objects_in_large_pictures_keep_their_distances():
    inside = np.zeros((3, 40, 70), dtype=bool)
    inside[0, 30:, 50:61] = inside[1, 28:33, 55:] = True  # at two edges; the third has none
    expected = [ndimage.distance_transform_edt(np.pad(m, 1))[1:-1, 1:-1] ** 2 for m in inside]
    found = squared_distance(torch.from_numpy(inside)).numpy()
    np.testing.assert_array_equal(found, np.round(expected))
    assert not squared_distance(torch.zeros(2, 5, 5).bool()).any()


class Segmenter:
    """Knows the maps of pictures by their colour."""

    def __init__(self, dense):
        self.dense, self.decoder = dense, Decoder()

    def __call__(self, pixels, points, size):
        assert tuple(pixels.shape[1:]) == (3, SIZE, SIZE)
        assert size == SIZE
        numbers = (pixels * 255).round().long()
        assert (numbers == numbers[:, :1, :1, :1]).all()
        return self.decoder(self.dense[numbers[:, 0, 0, 0]], points, size)


def test_a_teacher_that_segments_alone_answers_for_its_own_pixels(monkeypatch):
    monkeypatch.setattr(masks, "_CHUNK", 4)
    dense = dense_maps()
    alone = {"sam2": Owner(4, segment=Segmenter(dense))}
    expected = pytest.approx(100 * np.mean(slow(dense)), abs=1e-3)
    assert run(None, alone, ["sam2"], name="sam2", role="teacher").values["iou"] == expected
    # Nobody else is served by it, a student of that name neither.
    for name, role in (("vit", "student"), ("sam2", "student"), ("other", "teacher")):
        with pytest.raises(CannotProbe, match="that of sam2 reads finer maps"):
            run(dense, alone, ["sam2"], name=name, role=role)
    # One with a decoder of dense features as well is judged by these.
    both = {"sam": Owner(4, segment=Segmenter(dense.flip(0)), mask_decoder=Decoder())}
    assert run(dense, both, ["sam"], name="sam", role="teacher").values["iou"] == expected


def test_what_cannot_be_scored():
    sam = {"sam": Owner(4, mask_decoder=Decoder())}
    with pytest.raises(CannotProbe, match="no teacher has a mask decoder"):
        run(dense_maps(), {}, [])
    with pytest.raises(CannotProbe, match="does not reach the space of sam"):
        run(dense_maps(), sam, [])
    with pytest.raises(CannotProbe, match="no dense"):
        run(None, sam, ["sam"])
    with pytest.raises(NothingToScore, match="visible"):
        run(dense_maps(), sam, ["sam"], lambda n: torch.zeros(SIZES[n], dtype=torch.int64))
