"""A run over a folder in which some images cannot be decoded."""

import json

import numpy as np
import pytest
from PIL import Image

from distill.recipe.load import from_dict
from distill.runner import run
from students import UserError


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


def recipe(tiny, photos):
    tiny["data"] = {"train": {"photos": {"source": f"folder:{photos}"}}, "workers": 0}
    del tiny["stages"]["multires"]
    tiny["validate"] = None
    return tiny


def test_a_bad_image_is_replaced_and_named_once(tiny, photos, tmp_path):
    (photos / "03.png").write_bytes(b"no picture")
    result = run(from_dict(recipe(tiny, photos)), run_dir=tmp_path / "run", quiet=True)
    assert result.student("proxy/proxy").is_dir()
    (line,) = (result.folder / "bad_samples.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert (found["stage"], found["name"]) == ("proxy", "photos/03.png")
    assert found["reason"]


def test_too_many_stop_the_run_with_their_names(tiny, photos, tmp_path):
    (photos / "03.png").write_bytes(b"no picture")
    recipe(tiny, photos)["data"]["max_bad"] = 0.0
    with pytest.raises(UserError, match=r"data\.max_bad = 0 allows: photos/03\.png"):
        run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)


def test_an_image_of_too_many_pixels_is_a_bad_one(tiny, photos, tmp_path):
    Image.new("RGB", (100, 100)).save(photos / "02.png")
    recipe(tiny, photos)["data"] |= {"max_pixels": 5000, "max_bad": 1.0}
    run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    lines = (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["photos/02.png"]
