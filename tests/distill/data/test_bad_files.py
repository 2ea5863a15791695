"""Every kind of odd or broken file: read to which pixels, or a bad sample for which reason.

A case writes its file and gives what must come of it: an array (H, W, 3), by numpy or Pillow, or
a pattern of the reason.
"""

import io
import os
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.data.decode import decode_image_bytes
from distill.data.folder import FolderSource
from distill.data.source import BadSample

CASES = {}


def photo(height=60, width=90):
    """(H, W, 3): colours and a fine pattern, so that every part has something to decode."""
    y, x = np.mgrid[0:height, 0:width]
    fine = np.random.default_rng(0).integers(0, 60, (height, width))
    channels = [190 * x / width + fine, 250 * y / height, 190 - 100 * y / height + fine]
    return np.stack(channels, -1).astype(np.uint8)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(
        buffer, kind, **options
    )
    return buffer.getvalue()


JPEG = encoded(photo(), "JPEG", quality=90)
PNG = encoded(photo(), "PNG")
GREY = np.repeat(np.asarray(Image.fromarray(photo()).convert("L"))[..., None], 3, axis=2)


def by_pillow(data):
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened.convert("RGB"))


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_header(width, height):
    return b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    )


def jpeg_of_size(width, height):
    frame = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:frame] + struct.pack(">HH", height, width) + JPEG[frame + 4 :]


def case(name, ending):
    def add(function):
        CASES[name] = (ending, function)
        return function

    return add


def bytes_case(name, ending, data, becomes):
    def write(path):
        path.write_bytes(data() if callable(data) else data)
        return becomes(path.read_bytes()) if callable(becomes) else becomes

    CASES[name] = (ending, write)


# Cut off: never a picture that is half grey.
for share in (0.02, 0.3, 0.6, 0.99):
    cut = int(len(JPEG) * share)
    bytes_case(f"JPEG cut at {share}", "jpg", JPEG[:cut], "damaged JPEG|truncated")
    bytes_case(f"PNG cut at {share}", "png", PNG[: int(len(PNG) * share)], "truncated|damaged PNG")
bytes_case("JPEG without its end", "jpg", JPEG[:-2], "truncated")
bytes_case("JPEG cut and closed", "jpg", JPEG[: len(JPEG) // 2] + b"\xff\xd9", "truncated")
bytes_case("PNG without its end", "png", PNG[:-12], "truncated")
for kind in ("GIF", "WEBP", "BMP", "TIFF"):
    whole = encoded(photo(), kind)
    bytes_case(f"{kind} cut in the middle", kind.lower(), whole[: len(whole) // 2], ".")
bytes_case(
    "progressive JPEG cut", "jpg", encoded(photo(), "JPEG", progressive=True)[:-300], "truncated"
)
bytes_case(
    "CMYK JPEG cut",
    "jpg",
    encoded(Image.fromarray(photo()).convert("CMYK"), "JPEG")[:-300],
    "truncated",
)

# Damaged within.
for marker in (b"\xff\xd9", b"\xff\xd3", b"\xff\xc5"):
    half = len(JPEG) // 2
    bytes_case(
        f"JPEG with a stray marker {marker.hex()}",
        "jpg",
        JPEG[:half] + marker + JPEG[half + 2 :],
        "truncated|damaged JPEG",
    )
bytes_case(
    "JPEG with zeros in the middle",
    "jpg",
    lambda: JPEG[:3000] + bytes(300) + JPEG[3300:],
    by_pillow,
)
flipped = bytearray(PNG)
flipped[len(PNG) // 2] ^= 0x55
bytes_case("PNG with a wrong bit", "png", bytes(flipped), "checksum of a chunk IDAT")
bytes_case(
    "JPEG without tables", "jpg", b"\xff\xd8" + JPEG[JPEG.index(b"\xff\xc0") :], "damaged JPEG"
)
bytes_case("JPEG with garbage after it", "jpg", JPEG + b"garbage \xff\xd9\xff\xc0" * 99, by_pillow)
bytes_case("PNG with garbage after it", "png", PNG + b"garbage" * 99, photo())

# No image at all.
bytes_case("empty", "jpg", b"", "the file is empty")
bytes_case("text", "jpg", b"I am no image\n", "no JPEG.*I am no imag")
bytes_case("HTML", "png", b"<!DOCTYPE html><html>404</html>", "no JPEG.*<!DOCTYPE")
bytes_case("only a signature", "jpg", b"\xff\xd8\xff\xe0", "damaged JPEG")
bytes_case("PostScript", "tif", b"%!PS-Adobe-3.0 EPSF-3.0\n", "no JPEG")
bytes_case("a video", "webp", b"RIFF\x10\0\0\0AVI LIST\0\0\0\0", "no JPEG")

# What claims to be huge, and holds nothing.
bytes_case("PNG bomb", "png", png_header(60_000, 60_000), "too large: 60000 x 60000 pixels")
bytes_case("JPEG bomb", "jpg", jpeg_of_size(65_000, 65_000), "too large: 65000 x 65000")
bytes_case(
    "WebP bomb",
    "webp",
    b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\xff\xff\xff\0\0",
    "too large: 16777216 x 256",
)
bytes_case(
    "GIF bomb",
    "gif",
    b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\0;",
    "too large: 65535 x 65535",
)
bytes_case(
    "BMP bomb",
    "bmp",
    b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 50_000, 50_000, 1, 24, *[0] * 6),
    "too large: 50000 x 50000",
)
bytes_case("JPEG of more than it holds", "jpg", jpeg_of_size(90, 4000), "truncated")
bytes_case("PNG of no width", "png", png_header(0, 60) + PNG[33:], "0 x 60 pixels")
bytes_case("JPEG of no height", "jpg", jpeg_of_size(90, 0), "90 x 0 pixels")

# Odd and whole.
bytes_case(
    "broken EXIF",
    "jpg",
    lambda: encoded(photo(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    by_pillow,
)
bytes_case(
    "EXIF with a senseless orientation",
    "jpg",
    lambda: encoded(photo(), "JPEG", exif=tags(77)),
    by_pillow,
)
bytes_case("PNG named .jpg", "jpg", PNG, photo())
bytes_case("JPEG named .webp", "webp", JPEG, by_pillow)
bytes_case(
    "one bit", "png", lambda: encoded(Image.fromarray(photo()).convert("1"), "PNG"), by_pillow
)
bytes_case(
    "palette", "png", lambda: encoded(Image.fromarray(photo()).quantize(16), "PNG"), by_pillow
)
bytes_case("grey JPEG", "jpg", lambda: encoded(GREY[..., 0], "JPEG"), by_pillow)
bytes_case("grey PNG", "png", lambda: encoded(GREY[..., 0], "PNG"), GREY)
bytes_case("progressive JPEG", "jpg", lambda: encoded(photo(), "JPEG", progressive=True), by_pillow)
bytes_case(
    "CMYK JPEG", "jpg", lambda: encoded(Image.fromarray(photo()).convert("CMYK"), "JPEG"), by_pillow
)
bytes_case(
    "huge ICC profile in a JPEG",
    "jpg",
    lambda: encoded(photo(), "JPEG", icc_profile=bytes(3 << 20)),
    by_pillow,
)
bytes_case(
    "huge ICC profile in a PNG",
    "png",
    lambda: encoded(photo(), "PNG", icc_profile=bytes(9 << 20)),
    photo(),
)
bytes_case("one pixel", "png", lambda: encoded(photo()[:1, :1], "PNG"), photo()[:1, :1])
bytes_case("one pixel JPEG", "jpg", lambda: encoded(photo()[:1, :1], "JPEG"), by_pillow)
bytes_case("a line", "png", lambda: encoded(photo(1, 20_000), "PNG"), photo(1, 20_000))
bytes_case("a column", "jpg", lambda: encoded(photo(20_000, 1), "JPEG"), by_pillow)
bytes_case(
    "32-bit floats", "tif", lambda: encoded(np.ones((8, 8), np.float32), "TIFF"), "32-bit pixels"
)


def tags(value):
    exif = Image.Exif()
    exif[0x112] = value
    return exif


@case("16-bit grey", "png")
def sixteen_bits(path):
    values = (np.arange(60 * 90).reshape(60, 90) * 12).astype(np.uint16)
    path.write_bytes(encoded(values, "PNG"))
    return np.repeat(np.round(values / 257)[..., None], 3, axis=2)


@case("alpha", "png")
def alpha(path):
    rgba = np.dstack([photo(), np.where(photo()[..., :1] > 99, 255, 0)]).astype(np.uint8)
    path.write_bytes(encoded(rgba, "PNG"))
    return np.where(rgba[..., 3:] == 255, rgba[..., :3], 255)


@case("palette with transparency", "png")
def transparent_palette(path):
    image = Image.fromarray(np.array([[0, 1, 1]] * 2, np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(path, transparency=0)
    return np.array([[[255] * 3, [200, 100, 50], [200, 100, 50]]] * 2)


def animation(kind, **options):
    frames = [Image.fromarray(np.full((8, 9, 3), shade, np.uint8)) for shade in (40, 90, 200)]

    def write(path):
        frames[0].save(path, kind, save_all=True, append_images=frames[1:], **options)
        return np.full((8, 9, 3), 40)

    return write


CASES["animated GIF"] = ("gif", animation("GIF"))
CASES["animated WebP"] = ("webp", animation("WEBP", lossless=True))
CASES["animated PNG"] = ("png", animation("PNG"))
CASES["TIFF of several pages"] = ("tif", animation("TIFF"))


@case("symbolic link to itself", "jpg")
def loop(path):
    path.symlink_to(path)
    return "Too many levels of symbolic links"


@case("symbolic link to nothing", "jpg")
def dangling(path):
    path.symlink_to(path.parent / "gone.jpg")
    return "No such file"


@case("symbolic link to an image", "jpg")
def link(path):
    (path.parent / "elsewhere").write_bytes(PNG)
    path.symlink_to(path.parent / "elsewhere")
    return photo()


@case("a folder", "jpg")
def folder(path):
    path.mkdir()
    return "not a regular file"


@case("a pipe that nobody writes to", "jpg")
def pipe(path):
    os.mkfifo(path)
    return "not a regular file"


@case("a file that is not there", "jpg")
def absent(path):
    return "No such file"


@case("a path through a file", "jpg")
def through(path):
    path.write_bytes(JPEG)
    (path.parent / "list.txt").write_text("sample.jpg/x.jpg\n")
    return "Not a directory"


@case("a file far larger than its picture may be", "jpg")
def sparse(path):
    with path.open("wb") as file:
        file.write(JPEG)
        file.truncate(1 << 40)
    return "a file of 1099511627776 bytes"


@pytest.mark.timeout(30)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # of the oracle
@pytest.mark.parametrize("name", CASES)
def test_what_becomes_of(name, tmp_path):
    ending, write = CASES[name]
    path = tmp_path / f"sample.{ending}"
    listed = tmp_path / "list.txt"
    listed.write_text(f"{path.name}\n")
    want = write(path)
    source = FolderSource(str(listed))
    assert len(source) == 1
    if isinstance(want, str):
        with pytest.raises(BadSample) as caught:
            source.read(0)
        assert caught.value.name == source.name(0)
        assert re.search(want, caught.value.reason), caught.value.reason
        assert "\n" not in str(caught.value)
        assert str(tmp_path) not in caught.value.reason
        assert " at 0x" not in caught.value.reason  # the same in every process
    else:
        got = source.read(0).permute(1, 2, 0).numpy().astype(int)
        assert got.shape == want.shape
        near = 4 if path.read_bytes().startswith(b"\xff\xd8") else 0  # two builds of libjpeg
        assert np.abs(got - want).max() <= near


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    (tmp_path / "closed.jpg").write_bytes(JPEG)
    source = FolderSource(str(tmp_path))
    opened = os.open

    def refuse(path, *rest, **named):  # root may read anything
        if str(path).endswith("closed.jpg"):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(BadSample, match=r"closed\.jpg: Permission denied"):
        source.read(0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_every_cut_is_noticed(kind):
    data = encoded(photo(16, 16), kind)
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"truncated|damaged|empty|no JPEG"):
            decode_image_bytes(data[:length])


@pytest.mark.slow
def test_damage_never_ends_the_process(tmp_path):
    """In a process of its own: a decoder that crashes would take the tests along."""
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        (tmp_path / kind).write_bytes(encoded(photo(), kind))
    program = """
import sys, pathlib, numpy as np
from distill.data.decode import decode_image_bytes
for path in pathlib.Path(sys.argv[1]).iterdir():
    data, draw = path.read_bytes(), np.random.RandomState(0)
    for number in range(200):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 5)):
            damaged[draw.randint(len(data))] = draw.randint(256)
        try:
            image = decode_image_bytes(bytes(damaged[: draw.randint(1, 2 * len(data))]), 10**6)
            assert image.shape[0] == 3 and image[0].numel() <= 10**6
        except ValueError as error:
            assert str(error) and "\\n" not in str(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
