"""Pixels of whole images. The oracle is numpy, or Pillow's own conversion."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from distill.data.decode import decode_image_bytes

WIDTH, HEIGHT = 40, 24


def photo(height=HEIGHT, width=WIDTH):
    """(H, W, 3) smooth colours, another in each corner."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([250 * x / width, 250 * y / height, 120 + 100 * (x - y) / (width + height)], -1)
    return rgb.astype(np.uint8)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(
        buffer, kind, **options
    )
    return buffer.getvalue()


def decoded(data, **options):
    image = decode_image_bytes(data, **options)
    assert image.dtype.is_floating_point is False
    assert image.shape[0] == 3
    return image.permute(1, 2, 0).numpy()


def by_pillow(data):
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(ImageOps.exif_transpose(opened).convert("RGB")).astype(int)


def orientation(value):
    tags = Image.Exif()
    tags[0x112] = value
    return tags


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png16(values, colour_type):
    """A PNG of 16 bits from (H, W, channels) uint16, by the specification."""
    height, width = values.shape[:2]
    rows = values.astype(">u2").reshape(height, -1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in chunks)


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_exif_orientation_is_pillows(kind, value):
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = encoded(photo(), kind, exif=orientation(value), **options)
    assert np.abs(decoded(data) - by_pillow(data)).max() <= (3 if kind == "JPEG" else 0)
    # and Pillow's is the standard's: value 6 is seen after a quarter turn to the right
    if value == 6:
        assert np.abs(decoded(data) - np.rot90(photo(), -1).astype(int)).mean() < 4


def test_an_orientation_behind_another_segment_is_found():
    data = encoded(photo(), "JPEG", exif=orientation(6), quality=95)
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta/>"
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp + data[2:]
    assert decoded(data).shape == (WIDTH, HEIGHT, 3)


def test_an_orientation_holds_for_cmyk_too():
    data = encoded(Image.fromarray(photo()).convert("CMYK"), "JPEG", exif=orientation(8))
    assert np.array_equal(decoded(data), by_pillow(data))
    assert decoded(data).shape == (WIDTH, HEIGHT, 3)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_is_as_pillow_decodes_it(options):
    data = encoded(photo(90, 121), "JPEG", **options)
    assert np.abs(decoded(data) - by_pillow(data)).max() <= 3


def test_cmyk_is_pillows_with_adobes_marker_and_without():
    inks = np.random.default_rng(0).integers(0, 256, (4, 5, 4), dtype=np.uint8)
    inks = Image.fromarray(inks.repeat(8, 0).repeat(8, 1), "CMYK")
    data = encoded(inks, "JPEG", quality=95)
    adobe = data.index(b"\xff\xee")
    length = int.from_bytes(data[adobe + 2 : adobe + 4], "big")
    ycck = bytearray(data)
    ycck[adobe + 15] = 2  # the inks are stored as YCC and K
    for variant in (data, bytes(ycck), data[:adobe] + data[adobe + 2 + length :]):
        assert np.array_equal(decoded(variant), by_pillow(variant))


def test_colours_stored_as_rgb_in_a_jpeg():
    data = encoded(photo(), "JPEG", keep_rgb=True, quality=95)
    assert np.abs(decoded(data) - photo().astype(int)).mean() < 3


def test_a_picture_that_ends_in_grey_is_whole():
    picture = photo(64, 64)
    picture[40:] = 128
    for options in ({}, {"progressive": True}, {"restart_marker_rows": 1}):
        data = encoded(picture, "JPEG", **options)
        assert (decoded(data)[-1, -1] == 128).all()
        assert np.abs(decoded(data) - by_pillow(data)).max() <= 3
    flat = encoded(np.full((32, 32, 3), 128, np.uint8), "JPEG")
    assert (decoded(flat) == 128).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_range(kind):
    values = (np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) * 68).astype(np.uint16)
    got = decoded(encoded(values, kind))
    assert np.abs(got[..., 1] - values / 257).max() <= 0.5


def test_sixteen_bit_colours_keep_their_range():
    values = np.random.default_rng(1).integers(0, 1 << 16, (HEIGHT, WIDTH, 3), dtype=np.uint16)
    assert np.abs(decoded(png16(values, 2)) - values / 257).max() <= 1


def test_sixteen_bit_transparency_is_over_white():
    values = np.random.default_rng(2).integers(0, 1 << 16, (HEIGHT, WIDTH, 4), dtype=np.uint16)
    share = values[..., 3:] / 65535
    want = values[..., :3] / 257 * share + 255 * (1 - share)
    assert np.abs(decoded(png16(values, 6)) - want).max() <= 2.5


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_transparency_is_over_white(kind):
    rgba = np.dstack([photo(), photo()[..., 0]])
    share = rgba[..., 3:] / 255
    want = rgba[..., :3] * share + 255 * (1 - share)
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    assert np.abs(decoded(encoded(rgba, kind, **options)) - want).max() <= 1


def test_what_a_png_holds_besides_its_picture_is_not_opened():
    data = encoded(photo(), "PNG")
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(200 << 20)))
    profile = chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(20 << 20)))
    stuffed = data[:33] + text + profile + data[33:]
    # Pillow by itself refuses the picture for that
    with pytest.raises(ValueError, match="too large"):
        by_pillow(stuffed)
    assert np.array_equal(decoded(stuffed), photo())


KINDS = {
    "JPEG": {},
    "PNG": {},
    "WEBP": {},
    "WEBP lossless": {"lossless": True},
    "WEBP animated": {"save_all": True, "append_images": [Image.new("RGB", (WIDTH, HEIGHT))]},
    "GIF": {},
    "BMP": {},
    "TIFF": {},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_limit_is_on_width_times_height(kind):
    data = encoded(photo(), kind.split()[0], **KINDS[kind])
    assert decoded(data, max_pixels=WIDTH * HEIGHT).shape == photo().shape
    with pytest.raises(ValueError, match=f"too large: {WIDTH} x {HEIGHT} pixels, more than 959"):
        decode_image_bytes(data, max_pixels=WIDTH * HEIGHT - 1)


def test_the_limit_is_ours_and_not_pillows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for kind in ("PNG", "GIF", "BMP", "TIFF", "WEBP"):
        assert decoded(encoded(photo(), kind)).shape == photo().shape
    assert Image.MAX_IMAGE_PIXELS == 10
