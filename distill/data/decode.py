"""One image file to RGB bytes: torchvision where it is right and fast, Pillow for the rest."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_RGB = (8, 2)
_PNG_GREY = (8, 0)


def read_image(path: Path) -> Tensor:
    """The first picture in a file: (3, H, W) uint8 RGB, turned as its EXIF orientation says.

    Transparency is laid over white. 16-bit values are scaled to 8 bits. Of an animation
    only the first frame is read.

    Raises:
        OSError: if the file cannot be read.
        Exception: of many types, as Pillow's decoders raise them, if it is not a whole image.
    """
    data = path.read_bytes()
    if _torchvision_reads(data):
        try:
            # bytearray: torch warns of memory that it may not write to.
            return decode_image(
                torch.frombuffer(bytearray(data), dtype=torch.uint8),
                ImageReadMode.RGB,
                apply_exif_orientation=True,
            )
        except RuntimeError:
            pass  # Pillow may know the variant; if it does not, its reason is the clearer one.
    return _read_with_pillow(data)


def _torchvision_reads(data: bytes) -> bool:
    """Whether torchvision decodes this to the RGB that Pillow would give, by its header alone.

    It reads every JPEG, grey and CMYK too; of PNG not palettes, transparency and 16 bits.
    """
    if data.startswith(_JPEG):
        return True
    if data.startswith(_PNG):
        return tuple(data[24:26]) in (_PNG_RGB, _PNG_GREY) and b"tRNS" not in _before_idat(data)
    return False


def _before_idat(data: bytes) -> bytes:
    return data[: data.find(b"IDAT")]


def _read_with_pillow(data: bytes) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of broken EXIF and palettes: the pixels are what counts
        with Image.open(io.BytesIO(data)) as opened:
            image = ImageOps.exif_transpose(opened)
            rgb = np.array(_to_rgb(image))
    return torch.from_numpy(rgb).permute(2, 0, 1)


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
