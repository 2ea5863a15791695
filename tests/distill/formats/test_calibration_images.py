"""Which images a static quantization is calibrated on."""

import numpy as np
import torch
from PIL import Image

from distill.export.select import Found
from distill.formats.calibration import calibration_images, comparison_images
from distill.recipe.load import from_dict
from distill.scenes.dataset import Scenes


def test_of_the_runs_own_data(student_folders, tiny):
    recipe = from_dict(tiny)
    found = Found(student_folders["vit"], None, recipe)
    images, told = calibration_images(found, 32, count=16)
    assert told == "scenes:count=16,size=32"
    # Scenes of the run as they are: centre views neither flip nor crop a square.
    ours = (images * 255).round().to(torch.uint8).numpy()
    theirs = np.asarray(Scenes(16, 32, seed=0).images)
    known = {image.tobytes() for image in theirs}
    shown = {image.tobytes() for image in ours}
    assert shown <= known
    assert len(shown) >= 8
    again, _ = calibration_images(found, 32, count=16)
    assert torch.equal(images, again)


def test_of_a_folder(student_folders, photos):
    images, told = calibration_images(
        Found(student_folders["vit"], None, None), 40, str(photos), count=5
    )
    assert images.shape == (5, 3, 40, 40)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert told == f"folder:{photos}"
    # The centred square of each picture, 50 wide and 60 high.
    means = {
        round(float(np.asarray(Image.open(p))[5:55].mean() / 255), 2) for p in photos.iterdir()
    }
    assert all(min(abs(float(image.mean()) - mean) for mean in means) < 0.02 for image in images)


def test_pictures_to_compare_on_differ_and_are_always_the_same():
    pictures = comparison_images(24, 40, 4)
    assert pictures.shape == (4, 3, 24, 40)
    assert torch.equal(pictures, comparison_images(24, 40, 4))
    assert 0 <= pictures.min() < pictures.max() <= 1
    assert all((pictures[0] - other).abs().max() > 0.1 for other in pictures[1:])


def test_no_home_folder_is_named_in_what_leaves(student_folders, photos, monkeypatch):
    monkeypatch.setenv("HOME", str(photos.parent))
    found = Found(student_folders["vit"], None, None)
    _, told = calibration_images(found, 40, str(photos), count=2)
    assert told == f"folder:~/{photos.name}"
