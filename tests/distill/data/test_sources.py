import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from distill.data.folder import FolderSource
from distill.data.scenes import ScenesSource
from distill.data.source import BadSample
from distill.data.sources import check_source, open_source
from students.errors import UserError


def photo(height=24, width=40):
    """Smooth colours with a bright top left corner, so that JPEG is near and turns show."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([255 - 4 * x, 200 - 5 * y, 3 * x + 2 * y], axis=-1)
    return rgb.clip(0, 255).astype(np.uint8)


def read(path):
    source = open_source(f"folder:{path.parent}")
    names = [source.name(i) for i in range(len(source))]
    image = source.read(names.index(path.name))
    assert image.dtype == torch.uint8
    assert image.shape[0] == 3
    return image.permute(1, 2, 0).numpy()


def exif(orientation):
    tags = Image.Exif()
    tags[0x112] = orientation
    return tags


def test_a_folder_is_read_at_any_depth_sorted_and_by_ending(tmp_path):
    for name in ["b.PNG", "a/z.jpg", "a/b/c.webp", "a.bmp", "t.TIFF", "u.tif", "v.JPEG"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo()).save(tmp_path / name)
    for name in ["notes.txt", ".hidden.jpg", "a/._b.jpg"]:
        (tmp_path / name).write_text("no image")
    source = open_source(f"folder:{tmp_path}")
    names = [source.name(i) for i in range(len(source))]
    assert names == ["a.bmp", "a/b/c.webp", "a/z.jpg", "b.PNG", "t.TIFF", "u.tif", "v.JPEG"]
    for i in range(len(source)):
        assert source.read(i).shape == (3, 24, 40)
        assert np.abs(source.read(i).permute(1, 2, 0).numpy() - photo().astype(int)).mean() < 4


def test_a_home_folder_and_links(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    (tmp_path / "elsewhere").mkdir()
    Image.fromarray(photo()).save(tmp_path / "elsewhere/x.png")
    (tmp_path / "photos/loop").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/gone.png").symlink_to(tmp_path / "nowhere.png")
    source = FolderSource("~/photos")
    assert [source.name(i) for i in range(len(source))] == ["gone.png", "more/x.png"]
    with pytest.raises(BadSample, match=r"gone\.png: .*No such file"):
        source.read(0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_exif_orientation(tmp_path, kind, orientation):
    path = tmp_path / f"x.{kind}"
    Image.fromarray(photo()).save(path, exif=exif(orientation), quality=95)
    turned = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }[orientation](photo())
    got = read(path)
    assert got.shape == turned.shape
    assert np.abs(got.astype(int) - turned).mean() < 4


def test_cmyk_jpeg(tmp_path):
    path = tmp_path / "x.jpg"
    Image.fromarray(photo()).convert("CMYK").save(path, quality=95)
    assert np.abs(read(path).astype(int) - photo()).mean() < 4
    whole = path.read_bytes()
    adobe = whole.index(b"\xff\xee")  # the marker that says whether the inks are inverted
    length = int.from_bytes(whole[adobe + 2 : adobe + 4], "big")
    path.write_bytes(whole[:adobe] + whole[adobe + 2 + length :])
    with Image.open(path) as opened:
        want = np.asarray(opened.convert("RGB")).astype(int)
    assert np.abs(read(path) - want).max() <= 2


def test_grey_jpeg_and_png_and_one_bit(tmp_path):
    grey = Image.fromarray(photo()).convert("L")
    grey.save(tmp_path / "x.jpg", quality=95)
    grey.save(tmp_path / "x.png")
    grey.convert("1").save(tmp_path / "y.png")
    want = np.repeat(np.asarray(grey)[..., None], 3, axis=2)
    assert np.array_equal(read(tmp_path / "x.png"), want)
    assert np.abs(read(tmp_path / "x.jpg").astype(int) - want).mean() < 2
    assert set(np.unique(read(tmp_path / "y.png"))) == {0, 255}


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_sixteen_bits_keep_their_range(tmp_path, kind):
    values = (np.arange(24 * 40).reshape(24, 40) * 68).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"x.{kind}")
    got = read(tmp_path / f"x.{kind}")
    assert np.abs(got[..., 0] - values / 257).max() <= 0.5
    assert np.array_equal(got[..., 0], got[..., 2])


def test_float_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(BadSample, match="32-bit"):
        read(tmp_path / "x.tif")


def test_palette(tmp_path):
    palette = Image.fromarray(photo()).quantize(16)
    palette.save(tmp_path / "x.png")
    assert np.array_equal(read(tmp_path / "x.png"), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_is_laid_over_white(tmp_path, mode):
    if mode == "P":  # a palette with a transparent entry: left half
        image = Image.fromarray(np.repeat([[0, 1]], 8, axis=0).astype(np.uint8), "P")
        image.putpalette([10, 20, 30, 200, 100, 50])
        image.save(tmp_path / "x.png", transparency=0)
        want = [[255, 255, 255], [200, 100, 50]]
    elif mode == "RGB":  # a transparent colour (tRNS)
        image = Image.fromarray(np.array([[[10, 20, 30], [200, 100, 50]]], np.uint8))
        image.save(tmp_path / "x.png", transparency=(10, 20, 30))
        want = [[255, 255, 255], [200, 100, 50]]
    elif mode == "LA":
        pixels = np.array([[[100, 0], [100, 255]]], np.uint8)
        Image.fromarray(pixels, "LA").save(tmp_path / "x.png")
        want = [[255] * 3, [100] * 3]
    else:
        pixels = np.array([[[0, 0, 0, 128], [200, 100, 50, 255]]], np.uint8)
        Image.fromarray(pixels, "RGBA").save(tmp_path / "x.png")
        want = [[127, 127, 127], [200, 100, 50]]
    assert np.array_equal(read(tmp_path / "x.png")[0], want)


def test_what_cannot_be_decoded_is_a_bad_sample(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(photo(200, 300)).save(buffer, "jpeg")
    whole = buffer.getvalue()
    (tmp_path / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("I am no image\n")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "head.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    source = open_source(f"folder:{tmp_path}")
    assert len(source) == 4
    for i in range(4):
        with pytest.raises(BadSample) as caught:
            source.read(i)
        assert caught.value.name == source.name(i)
        assert caught.value.reason
        assert "\n" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)


def test_a_wrong_ending_does_not_matter(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(photo()).save(buffer, "png")
    (tmp_path / "x.jpg").write_bytes(buffer.getvalue())
    assert np.array_equal(read(tmp_path / "x.jpg"), photo())


def test_real_photographs(tmp_path):
    data = pytest.importorskip("skimage.data")
    flower = pytest.importorskip("sklearn.datasets").load_sample_images().images[1]
    photos = {"astronaut": data.astronaut(), "coffee": data.coffee(), "flower": flower}
    for name, pixels in photos.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.jpg", quality=90)
    for name in photos:
        with Image.open(tmp_path / f"{name}.jpg") as opened:
            want = np.asarray(opened.convert("RGB")).astype(int)
        got = read(tmp_path / f"{name}.jpg").astype(int)
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= 4  # two builds of libjpeg
        assert np.abs(got - want).mean() < 0.5


def test_scenes_are_those_of_the_data_set(tmp_path, monkeypatch):
    from distill.scenes.dataset import Scenes

    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path))
    assert check_source("scenes:count=6,size=32,seed=3") is None
    assert not list(tmp_path.iterdir())  # checking draws nothing
    source = open_source("scenes: count=6, size=32, seed=3")
    assert isinstance(source, ScenesSource)
    assert len(source) == 6
    assert np.array_equal(source.read(4).numpy(), Scenes(6, 32, 3).images[4])
    assert source.name(4) == "scene 3:4"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("foldr:/tmp", ["'foldr'", "did you mean 'folder'", "folder:PATH"]),
        ("/data/images", ["'/data/images'", "folder:PATH", "scenes:"]),
        ("folder:", ["needs a path"]),
        ("folder:/no/such/place", ["/no/such/place", "does not exist"]),
        ("scenes:cont=5", ["'cont'", "did you mean 'count'"]),
        ("scenes:count", ["'count'", "key=value"]),
        ("scenes:count=0", ["count=0", "at least 1"]),
        ("scenes:size=big", ["size=big", "at least 8"]),
        ("scenes:seed=-1", ["seed=-1"]),
        ("scenes:seed=10000", ["seed=10000", "validation"]),
    ],
)
def test_a_wrong_source_is_one_clear_line(spec, words):
    problem = check_source(spec)
    assert problem is not None
    assert "\n" not in problem
    for word in words:
        assert word in problem
    with pytest.raises(UserError) as caught:
        open_source(spec)
    assert str(caught.value) == problem


def test_a_folder_without_images_says_what_is_there(tmp_path):
    assert "found nothing" in check_source(f"folder:{tmp_path}")
    for name in ["a.txt", "b.csv", "c.md", "d.mp4"]:
        (tmp_path / name).write_text("")
    problem = check_source(f"folder:{tmp_path}")
    assert "a.txt, b.csv, c.md and 1 more" in problem
    assert ".webp" in problem
    assert "names no image" in check_source(f"folder:{tmp_path / 'a.txt'}")


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):  # root may list anything, so permissions alone would not do
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    problem = check_source(f"folder:{tmp_path}")
    assert "cannot list" in problem
    assert "closed" in problem
    assert "Permission denied" in problem
