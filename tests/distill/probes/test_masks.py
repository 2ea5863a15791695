"""Promptable masks: interior points against scipy, IoU against a loop over objects."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from distill.probes.masks import mask_iou, object_prompts, own_mask_iou, squared_distance
from distill.probes.models import CannotProbe, ProbedModel
from distill.probes.tasks import TASKS, Probe
from distill.probes.world import World
from distill.scenes.dataset import Scenes
from students import Features


def test_distance_against_scipy():
    random = np.random.default_rng(0)
    masks = ndimage.gaussian_filter(random.normal(size=(12, 30, 22)), (0, 3, 3)) > 0
    masks[0] = True  # whole image: the border is the outside
    masks[1] = False
    masks[2, :, :] = False
    masks[2, 5:9, 0:4] = True  # at the edge
    expected = np.stack(
        [ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1] for mask in masks]
    )
    found = squared_distance(torch.from_numpy(masks))
    np.testing.assert_array_equal(found.numpy(), np.round(expected**2))


@pytest.fixture(scope="module")
def instances():
    return torch.from_numpy(np.array(Scenes(24, 64, seed=77).instances))


def test_a_point_in_every_visible_object(instances):
    instances = instances.clone()
    shown = instances[0].unique()[1].item()
    inside = (instances[0] == shown).nonzero()
    kept = inside[:15]
    instances[0][instances[0] == shown] = 0
    instances[0][kept[:, 0], kept[:, 1]] = shown  # 15 pixels: one too few
    prompts = object_prompts(instances)
    expected = {
        (image, number)
        for image in range(24)
        for number in range(1, 5)
        if (instances[image] == number).sum() >= 16
    }
    found = set()
    for image, (x, y), mask in zip(prompts.image, prompts.point, prompts.mask, strict=True):
        number = instances[image, y, x].item()
        assert torch.equal(mask, instances[image] == number)
        distance = ndimage.distance_transform_edt(np.pad(mask.numpy(), 1))[1:-1, 1:-1]
        assert distance[y, x] == distance.max()
        found.add((image.item(), number))
    assert found == expected
    assert (0, shown) not in expected
    assert (prompts.image.diff() >= 0).all()


def test_the_least_size_grows_with_the_area():
    small = torch.zeros(1, 32, 32, dtype=torch.uint8)
    small[0, :2, :2] = 1  # 4 pixels of 32 x 32 are 16 of 64 x 64
    small[0, 10:11, 10:13] = 2  # 3 are too few
    assert len(object_prompts(small).image) == 1
    assert len(object_prompts(torch.zeros(2, 32, 32, dtype=torch.uint8)).image) == 0


class Decoder:
    """Knows nothing but what it is given: channel `number` of the dense map is object `number`.

    Three masks a point: nothing, the object that the point is in, everything.
    """

    def __init__(self, best=1):
        self.best, self.calls = best, []

    def __call__(self, dense, points, size):
        b, h, w, _ = dense.shape
        self.calls.append((h, size, points.shape[1]))
        fine = F.interpolate(dense.permute(0, 3, 1, 2), (4 * h, 4 * w), mode="nearest") - 0.5
        places = ((points + 0.5) / size * 4 * h).floor().long()
        masks = []
        for i in range(b):
            for x, y in places[i]:
                number = fine[i, :, y, x].argmax()
                masks.append(
                    torch.stack([torch.full_like(fine[i, 0], v) for v in (-1.0, 0.0, 1.0)])
                )
                masks[-1][1] = fine[i, number]
        quality = torch.zeros(b, points.shape[1], 3)
        quality[..., self.best] = 1
        return torch.stack(masks).unflatten(0, (b, -1)), quality


def dense_of(instances, grid):
    shares = torch.stack([(instances == k).float() for k in range(1, 5)], 1)
    return F.interpolate(shares, (grid, grid), mode="area").permute(0, 2, 3, 1)


def slow_iou(instances, prompts, grid):
    """Object by object, with the library's resizing only."""
    fine = dense_of(instances, grid).permute(0, 3, 1, 2)
    fine = fine.repeat_interleave(4, 2).repeat_interleave(4, 3) - 0.5
    values = []
    side = instances.shape[-1]
    for image, (x, y), truth in zip(prompts.image, prompts.point, prompts.mask, strict=True):
        number = fine[image, :, y * 4 * grid // side, x * 4 * grid // side].argmax()
        mask = fine[image, number][None, None]
        mask = F.interpolate(mask, (side, side), mode="bilinear")[0, 0] > 0
        values.append((mask & truth).sum().item() / (mask | truth).sum().item())
    return 100 * np.mean(values)


def test_mean_iou_against_a_loop_over_objects(instances):
    prompts = object_prompts(instances)
    decoder = Decoder()
    value = mask_iou(dense_of(instances, 16), prompts, decoder, stride=4)
    assert value == pytest.approx(slow_iou(instances, prompts, 16), abs=1e-4)
    assert value > 60
    assert {call[:2] for call in decoder.calls} == {(16, 64)}
    assert {call[2] for call in decoder.calls} <= {1, 2, 3, 4}


def test_the_mask_of_highest_predicted_iou_is_scored(instances):
    prompts = object_prompts(instances)
    dense = dense_of(instances, 16)
    assert mask_iou(dense, prompts, Decoder(best=0), stride=4) == 0
    shares = prompts.mask.flatten(1).float().mean(1).mean().item()
    assert mask_iou(dense, prompts, Decoder(best=2), stride=4) == pytest.approx(100 * shares)


def test_other_grids_are_brought_to_the_teachers(instances):
    prompts = object_prompts(instances)
    decoder = Decoder()
    mask_iou(dense_of(instances, 10), prompts, decoder, stride=9)  # 64 // 9 = 7, a frame of 63
    assert {call[:2] for call in decoder.calls} == {(7, 63)}
    none = object_prompts(torch.zeros(1, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match="visible"):
        mask_iou(torch.zeros(1, 8, 8, 4), none, decoder, stride=8)


# ---- a decoder of its own pixels


class Segmenter:
    """Knows the scenes by heart: `maps` (N, h, h, 4) as `Decoder` reads them, by image."""

    def __init__(self, scenes, maps):
        self.maps = {image.tobytes(): row for image, row in zip(scenes.images, maps, strict=True)}
        self.decoder = Decoder()

    def __call__(self, pixels, points, size):
        assert pixels.dtype == torch.float32
        shown = (pixels * 255).round().to(torch.uint8).numpy()
        return self.decoder(torch.stack([self.maps[x.tobytes()] for x in shown]), points, size)


def test_own_masks_are_scored_as_the_same_masks_of_dense_features():
    scenes = Scenes(24, 64, seed=77)
    instances = torch.from_numpy(np.array(scenes.instances))
    prompts, maps = object_prompts(instances), dense_of(instances, 16)
    value = own_mask_iou(np.array(scenes.images), prompts, Segmenter(scenes, maps))
    assert value == pytest.approx(slow_iou(instances, prompts, 16), abs=1e-4)
    assert value == pytest.approx(mask_iou(maps, prompts, Decoder(), stride=4), abs=1e-6)
    # Another image's masks are another value.
    wrong = own_mask_iou(np.array(scenes.images), prompts, Segmenter(scenes, maps.roll(1, 0)))
    assert wrong < value - 20


class Owner:
    stride, text_tower, mask_decoder, segment = 4, None, None, None


def probe(world, name, role, reach, teachers):
    """The task's probe of a model whose features are the truth."""
    instances = world.annotation("instances", "test")
    features = Features(None, dense_of(instances, 16))
    spaces = {teacher: lambda given: given for teacher in reach}
    model = ProbedModel(name, role, "", 0, None, spaces)
    return Probe(model, world, features, features, teachers)


def test_who_is_scored_by_which_decoder():
    world = World(64, 4, 24)
    truth = dense_of(world.annotation("instances", "test"), 16)
    sam, sam2, plain = Owner(), Owner(), Owner()
    sam2.segment = Segmenter(world.test, truth)
    teachers = {"plain": plain, "sam2": sam2}
    task = TASKS["masks"].run

    own = task(probe(world, "sam2", "teacher", ["sam2"], teachers))
    assert own.values["iou"] > 60
    assert own.samples == len(world.prompts.image)
    for name, role, reach in (
        ("fixed/vit", "student", ["sam2", "plain"]),
        ("proxy/proxy", "proxy", ["sam2"]),
        ("untrained vit", "untrained", ["sam2"]),
        ("sam2", "student", ["sam2"]),  # a student of that name is not the teacher
        ("plain", "teacher", ["plain"]),
    ):
        with pytest.raises(CannotProbe, match=r"that of sam2 reads finer maps of its own pixels"):
            task(probe(world, name, role, reach, teachers))

    # Beside a SAM each is scored by the decoder that it has or reaches, SAM on its dense features.
    sam.mask_decoder = Decoder()
    sam.segment = Segmenter(world.test, truth.roll(1, 0))
    teachers["sam"] = sam
    for name, role, reach in (
        ("sam2", "teacher", ["sam2"]),
        ("sam", "teacher", ["sam"]),
        ("fixed/vit", "student", ["sam2", "sam"]),
    ):
        value = task(probe(world, name, role, reach, teachers)).values["iou"]
        assert value == pytest.approx(own.values["iou"], abs=1e-6)
    assert sam.segment.decoder.calls == []
    with pytest.raises(CannotProbe, match="does not reach the space of sam, which"):
        task(probe(world, "plain", "teacher", ["plain"], teachers))
