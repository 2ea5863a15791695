"""One image file to RGB bytes: JPEG by torchvision, which is fast, the rest by Pillow.

torchvision's PNG decoder is left alone: it is no faster than Pillow's, and a damaged file can end
the process (a segmentation fault in torchvision 0.29 where libpng reports an error).
"""

from __future__ import annotations

import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from distill.data.image_headers import (
    JpegHeader,
    first_scan,
    image_format,
    jpeg_header,
    png_picture,
    png_size,
    webp_size,
)

MAX_PIXELS = 100_000_000
"""Width times height of the largest image that is decoded unless told otherwise."""

_BYTES_PER_PIXEL = 8
_BYTES_BESIDE = 64 << 20
"""No whole image of the largest size is a file of more: 16-bit RGBA uncompressed, and metadata."""

_ORIENTATION = 0x0112
_GREY = [128, 128, 128]

_pillow = threading.Lock()


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Tensor:
    """The first picture in a file, as `decode_image_bytes` gives it.

    Raises:
        OSError: if the file cannot be read or is no regular file (a pipe, a folder).
        ValueError: as `decode_image_bytes`.
    """
    # A pipe that nobody writes to would be waited for, here and in every worker.
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        size = status.st_size
        if size > _BYTES_PER_PIXEL * max_pixels + _BYTES_BESIDE:
            raise ValueError(f"a file of {size} bytes, more than {max_pixels} pixels can take")
        data = os.read(file, size)
        while len(data) < size and (more := os.read(file, size - len(data))):
            data += more
    finally:
        os.close(file)
    return decode_image_bytes(data, max_pixels)


def decode_image_bytes(data: bytes, max_pixels: int = MAX_PIXELS) -> Tensor:
    """The first picture of an image file: (3, H, W) uint8 RGB, turned as its EXIF says.

    JPEG, PNG, WebP, GIF, BMP or TIFF, told by content. Transparency is laid over white, 16-bit
    values are scaled to 8 bits, CMYK is converted as Pillow does, of an animation the first frame
    is read. Colour profiles are not applied. EXIF that cannot be read turns nothing.

    Args:
        data: the whole file.
        max_pixels: width times height of the largest image that is decoded. A larger one is
            refused by its header, before memory is taken for its pixels.

    Raises:
        ValueError: if it is no whole image of a known format, or too large; one line that says
            why.
    """
    try:
        kind = image_format(data)
        if kind == "JPEG":
            header = jpeg_header(data)
            _check_size((header.width, header.height), max_pixels)
            if header.components in (1, 3):
                return _turned(_decode_jpeg(data, header), _exif_orientation(header.exif))
        elif kind == "PNG":
            _check_size(png_size(data), max_pixels)
            data = png_picture(data)
        elif kind == "WEBP":
            _check_size(webp_size(data), max_pixels)
        return _decode_with_pillow(data, kind, max_pixels)
    except Exception as error:  # Pillow's decoders raise nearly every type there is
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(reason) from error


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"no picture: its header says {width} x {height} pixels")
    if width * height > max_pixels:
        raise ValueError(f"too large: {width} x {height} pixels, more than {max_pixels}")


def _decode_jpeg(data: bytes, header: JpegHeader) -> Tensor:
    """A grey or colour JPEG as it lies in the file, (3, H, W)."""
    try:
        image = _torchvision_jpeg(data)
    except RuntimeError as error:
        # The first line begins with a file and a line of the library's own source.
        text = str(error).splitlines()[0].split(".cpp:")[-1].lstrip("0123456789, ")
        raise ValueError(f"a damaged JPEG: {text}") from error
    # Where its data end early a decoder only warns, and fills up with grey.
    if image[:, -1, -1].tolist() == _GREY and _ended_early(data, header, image):
        raise ValueError("truncated: the JPEG's pixels end before the picture does")
    return image


def _torchvision_jpeg(data: bytes) -> Tensor:
    # bytearray: torch warns of memory that it may not write to.
    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)


def _ended_early(data: bytes, header: JpegHeader, image: Tensor) -> bool:
    """Whether the picture changes when more coded pixels follow those that are there."""
    begin, end = first_scan(data, header)
    more = re.sub(rb"\xff[\0\xd0-\xd7]?", b"", data[begin:end])
    try:
        return not torch.equal(_torchvision_jpeg(data[:end] + more + data[end:]), image)
    except RuntimeError:
        return True


def _decode_with_pillow(data: bytes, kind: str, max_pixels: int) -> Tensor:
    with _pillow_to_ourselves(), _open_with_pillow(data, kind) as image:
        _check_size(image.size, max_pixels)
        image.load()
        rgb = np.array(_to_rgb(image))
        # After the pixels: Pillow turns a TIFF by itself, and then says so here.
        orientation = _orientation(image)
    return _turned(torch.from_numpy(rgb).permute(2, 0, 1), orientation)


@contextmanager
def _pillow_to_ourselves() -> Iterator[None]:
    """Our limit in place of Pillow's, no warnings; both belong to the process, so one at a time."""
    with _pillow, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of broken EXIF and palettes: the pixels are what counts
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _open_with_pillow(data: bytes, kind: str) -> Image.Image:
    """Opened and not loaded."""
    try:
        return Image.open(io.BytesIO(data), formats=(kind,))
    except UnidentifiedImageError:
        raise ValueError(f"a damaged {kind}: its header cannot be read") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 instead of scaling.
        grey = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"32-bit pixels ({image.mode}) have no fixed range of values")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return image.convert("RGB")


def _exif_orientation(segment: bytes) -> int:
    """1 to 8 of a JPEG's EXIF segment; 1 if it is empty or broken."""
    if not segment:
        return 1
    exif = Image.Exif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exif.load(segment)
            return _legal(exif.get(_ORIENTATION))
    except Exception:  # as many types as with pixels
        return 1


def _orientation(image: Image.Image) -> int:
    try:
        return _legal(image.getexif().get(_ORIENTATION))
    except Exception:
        return 1


def _legal(value: object) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turned(image: Tensor, orientation: int) -> Tensor:
    """The picture upright: EXIF (CIPA DC-008) names the sides that row 0 and column 0 lie on."""
    if orientation >= 5:  # rows are columns
        image = image.transpose(1, 2)
    mirrored = [
        dim for dim, which in ((1, (3, 4, 7, 8)), (2, (2, 3, 6, 7))) if orientation in which
    ]
    return image.flip(mirrored) if mirrored else image
