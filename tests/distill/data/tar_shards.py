"""Tar shards for tests: every image is of one colour, which says which it is."""

import io
import tarfile

import numpy as np
from PIL import Image


def png(number, size=(9, 11)):
    """A PNG whose pixels are (number // 256, number % 256, 7)."""
    pixels = np.full((*size, 3), (number // 256, number % 256, 7), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def number_of(image):
    """The inverse of png, of a tensor (3, H, W)."""
    return int(image[0, 0, 0]) * 256 + int(image[1, 0, 0])


def write_tar(path, members):
    """A tar of (name, bytes) in order."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_shards(folder, counts):
    """Shards 000.tar, 001.tar, ... of so many images, numbered through; the pattern of them."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for shard, count in enumerate(counts):
        members = []
        for _ in range(count):
            members.append((f"{number:05d}.png", png(number)))
            members.append((f"{number:05d}.txt", b"a caption"))
            number += 1
        write_tar(folder / f"{shard:03d}.tar", members)
    return f"{folder}/{{000..{len(counts) - 1:03d}}}.tar"
