import json

import numpy as np
import pytest
import torch
from PIL import Image

from distill.probes.models import ProbedModel
from distill.report.colours import colour_classes, colour_depth
from distill.report.pictures import SHOWN, draw_pictures
from distill.scenes.dataset import Scenes
from distill.scenes.generate import FAR, NEAR
from students.features import Features

SIZE = 32


class FakeEncoder:
    """Knows every scene by heart: shares of the classes and mean depth of each patch of 4 pixels,
    times `gain`; with a gain of 0 it sees nothing."""

    size, stride, mask_decoder, segment = SIZE, 4, None, None

    def __init__(self, scenes, gain=1.0):
        self.known = {}
        for each in scenes:
            classes = torch.from_numpy(np.array(each.segmentation)).long()
            maps = torch.nn.functional.one_hot(classes, 9).permute(0, 3, 1, 2).float()
            depth = torch.from_numpy(np.array(each.depth)).float()[:, None]
            maps = torch.nn.functional.avg_pool2d(torch.cat([maps, depth], 1), self.stride) * gain
            for image, dense in zip(each.images, maps.permute(0, 2, 3, 1), strict=True):
                self.known[image.tobytes()] = dense

    def __call__(self, pixels, size=None):
        images = (pixels * 255).round().to(torch.uint8).numpy()
        dense = torch.stack([self.known[image.tobytes()] for image in images])
        return Features(dense.mean((1, 2)), dense)


class FakeDecoder:
    """Three masks a point: nothing, the left half (said to be best), everything."""

    def __call__(self, dense, points, size):
        b, p = points.shape[:2]
        logits = torch.full((b, p, 3, 4 * dense.shape[1], 4 * dense.shape[2]), -1.0)
        logits[:, :, 1, :, : logits.shape[-1] // 2] = 1.0
        logits[:, :, 2] = 1.0
        return logits, torch.tensor([0.1, 0.9, 0.2]).expand(b, p, 3)


@pytest.fixture(scope="module")
def scenes():
    return Scenes(16, SIZE, seed=3), Scenes(32, SIZE, seed=3, start=100)


@pytest.fixture(scope="module")
def drawn(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    teachers = {name: FakeEncoder(scenes, name != "blind") for name in ("blind", "sharp", "masks")}
    teachers["masks"].mask_decoder = FakeDecoder()
    models = [
        ProbedModel(name, "teacher", "", 0, encoder, {name: lambda x: x})
        for name, encoder in teachers.items()
    ]
    reach = {"masks": lambda x: x}
    models += [
        ProbedModel("proxy/proxy", "proxy", "proxy", 0, FakeEncoder(scenes), reach),
        ProbedModel("fixed/<vit>", "student", "fixed", 0, FakeEncoder(scenes), reach),
        ProbedModel("multires/<vit>/..", "student", "multires", 0, FakeEncoder(scenes), reach),
        ProbedModel(
            "multires/vit untrained", "untrained", "multires", 0, FakeEncoder(scenes), reach
        ),
    ]
    draw_pictures(models, teachers, *scenes, SIZE, folder, "cpu")
    return folder, json.loads((folder / "pictures.json").read_text())


def cell(drawn, row, group, title):
    folder, grid = drawn
    found = [c for c in grid["rows"][row]["cells"] if (c["group"], c["title"]) == (group, title)]
    assert len(found) == 1
    return np.asarray(Image.open(folder / found[0]["file"]))


def test_grid_holds_what_it_should(drawn):
    _, grid = drawn
    last = "multires/<vit>/.."
    assert len(grid["rows"]) == SHOWN
    for row in grid["rows"]:
        groups = {}
        for c in row["cells"]:
            groups.setdefault(c["group"], []).append(c["title"])
        assert groups["Image"] == ["input"]
        seen = ["blind", "sharp", "masks", "proxy/proxy", "fixed/<vit>", last]
        assert groups["Dense features"] == seen  # not the untrained one
        for task in ("Segmentation", "Depth"):
            truth, teacher, student = groups[task]
            assert (truth, student) == ("truth", last)
            assert teacher in ("sharp", "masks"), "a teacher that sees nothing is not the best"
        assert groups["Mask from a point"] == ["truth", "masks", last]
        assert [f"{c['group']}: {c['title']}" for c in row["cells"]] == grid["columns"]
        for c in row["cells"]:
            assert Image.open(drawn[0] / c["file"]).size == (128, 128)


def test_truth_and_input_are_the_scenes_own(drawn, scenes):
    test, _ = scenes
    row = test.captions.index(drawn[1]["rows"][0]["caption"])
    at_pixel = np.arange(SIZE) * 4 + 1  # 32 pixels shown at 128
    for group, title, want in (
        ("Image", "input", test.images[row].transpose(1, 2, 0)),
        ("Segmentation", "truth", colour_classes(test.segmentation[row])),
        ("Depth", "truth", colour_depth(test.depth[row], NEAR, FAR)),
    ):
        assert (cell(drawn, 0, group, title)[at_pixel][:, at_pixel] == want).all()


def test_features_are_in_colours_that_compare(scenes, tmp_path):
    class Turned(FakeEncoder):
        """The same features in other channels, with a token of high norm in every picture."""

        def __call__(self, pixels, size=None):
            dense = 3 * super().__call__(pixels, size).dense.flip(-1)
            dense[:, 0, 0] = 1e4
            return Features(dense.mean((1, 2)), dense)

    models = [
        ProbedModel(name, "teacher", "", 0, encoder, {})
        for name, encoder in (("plain", FakeEncoder(scenes)), ("turned", Turned(scenes)))
    ]
    draw_pictures(models, {}, *scenes, SIZE, tmp_path, "cpu")
    grid = json.loads((tmp_path / "pictures.json").read_text())
    for row in range(SHOWN):
        one, other = (
            cell((tmp_path, grid), row, "Dense features", name).astype(int)[48:, 48:]
            for name in ("plain", "turned")
        )
        assert np.abs(one - other).max() <= 2
    (note,) = grid["notes"]
    assert note.startswith("turned: outlier tokens: 1.6 % (4 of 256)")


def test_mask_is_the_one_the_decoder_holds_best(drawn):
    for title in ("masks", "multires/<vit>/.."):
        picture, image = (
            cell(drawn, 1, "Mask from a point", title),
            cell(drawn, 1, "Image", "input"),
        )
        dimmed = (np.abs(picture - 0.35 * image) < 1.01).all(-1)
        assert dimmed[:, 64:].mean() > 0.9
        assert dimmed[:, :64].mean() < 0.1


def test_predictions_are_those_of_a_model_that_knows(drawn):
    last = "multires/<vit>/.."
    for group, at_least in (("Segmentation", 0.8), ("Depth", 0.6)):
        truth = np.stack([cell(drawn, r, group, "truth") for r in range(SHOWN)]).astype(int)
        ours = np.stack([cell(drawn, r, group, last) for r in range(SHOWN)])
        near = (np.abs(truth - ours) < 40).all(-1).mean()
        elsewhere = (np.abs(truth - np.roll(ours, 1, axis=0)) < 40).all(-1).mean()
        assert near > at_least
        assert near > elsewhere + 0.1, "each scene beside its own truth"


def test_without_decoder_or_student_the_rest_is_drawn(scenes, tmp_path):
    teachers = {"sharp": FakeEncoder(scenes)}
    models = [ProbedModel("sharp", "teacher", "", 0, teachers["sharp"], {})]
    draw_pictures(models, teachers, *scenes, SIZE, tmp_path, "cpu")
    groups = {
        c.split(": ")[0] for c in json.loads((tmp_path / "pictures.json").read_text())["columns"]
    }
    assert groups == {"Image", "Dense features", "Segmentation", "Depth"}


def test_a_decoder_of_own_pixels_draws_its_teachers_masks_alone(scenes, tmp_path):
    class Segmenter:
        """The right half, said to be best, of images that it is shown."""

        def __call__(self, pixels, points, size):
            known = {image.tobytes() for each in scenes for image in each.images}
            assert {x.tobytes() for x in (pixels * 255).round().byte().numpy()} <= known
            assert points.shape == (SHOWN, 1, 2)
            assert size == SIZE
            logits = torch.full((SHOWN, 1, 3, 8, 8), -1.0)
            logits[:, :, 2, :, 4:] = 1.0
            return logits, torch.tensor([0.1, 0.2, 0.9]).expand(SHOWN, 1, 3)

    teachers = {"sharp": FakeEncoder(scenes), "sam2": FakeEncoder(scenes)}
    teachers["sam2"].segment = Segmenter()
    models = [
        ProbedModel(name, "teacher", "", 0, encoder, {name: lambda x: x})
        for name, encoder in teachers.items()
    ]
    reach = {"sam2": lambda x: x}
    models.append(ProbedModel("fixed/vit", "student", "fixed", 0, FakeEncoder(scenes), reach))
    draw_pictures(models, teachers, *scenes, SIZE, tmp_path, "cpu")
    grid = json.loads((tmp_path / "pictures.json").read_text())
    titles = [c.split(": ")[1] for c in grid["columns"] if c.startswith("Mask from a point")]
    assert titles == ["truth", "sam2"]
    picture = cell((tmp_path, grid), 1, "Mask from a point", "sam2")
    image = cell((tmp_path, grid), 1, "Image", "input")
    dimmed = (np.abs(picture - 0.35 * image) < 1.01).all(-1)
    assert dimmed[:, :64].mean() > 0.9
    assert dimmed[:, 64:].mean() < 0.1


def test_too_few_training_scenes_are_refused(scenes, tmp_path):
    with pytest.raises(ValueError, match="4 training scenes"):
        draw_pictures([], {}, scenes[0], Scenes(4, SIZE, seed=3), SIZE, tmp_path, "cpu")
