"""Where the images of a tar file lie: one pass over its headers, nothing unpacked."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from distill.data.folder import EXTENSIONS

_LONGEST = 192
_BLOCK = 512
# As webdataset splits a name: folders and all up to the first dot, then what kind of part it is.
_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)


def index_tar(path: Path) -> NDArray[np.void]:
    """The images of an uncompressed tar: (N,) records, N at least 1, in the file's order.

    Fields: `offset` and `size` int64, where in the file the image's bytes are; `name` in UTF-8, as
    far as 192 bytes go. A record of size -1 stands for damage, and its name says what is wrong.

    Of members that share a key (the name up to the first dot of its last part) and follow each
    other the first image is taken, as webdataset groups them. Other members are passed over.
    A file that breaks off, or holds no image, ends with a record of damage, so that what is
    missing is met like any bad sample.

    Raises:
        OSError: if the file cannot be read.
    """
    found: list[tuple[int, int, bytes]] = []
    length = path.stat().st_size
    damage = ""
    with path.open("rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                _collect(tar, length, found)
                damage = _what_follows(file, tar.offset)
        except tarfile.TarError as error:
            damage = f"breaks off: {error}" if found else f"no tar file: {error}"
        except (ValueError, OverflowError) as error:  # fields of a header that are no numbers
            damage = f"a damaged header: {error}"
    if not found and not damage:
        damage = f"no image in the tar file (looked for {' '.join(EXTENSIONS)})"
    if damage:
        reason = f"{damage}; {len(found)} images before that" if found else damage
        found.append((0, -1, reason.encode(errors="replace")))
    width = min(_LONGEST, max(len(name) for _, _, name in found))
    return np.array(found, dtype=_record(width))


def save_index(index: NDArray[np.void], path: Path) -> None:
    """Writes what `index_tar` gives to a file: the width of names in 8 bytes, then the records.

    Not as .npy: its header is parsed as Python, which Python 3.11 cannot do in two threads at once.
    """
    with path.open("wb") as file:
        file.write(np.array(index.dtype["name"].itemsize, dtype="<i8").tobytes())
        file.write(index.tobytes())


def load_index(path: Path) -> NDArray[np.void]:
    """What `save_index` wrote, by memory map."""
    with path.open("rb") as file:
        width = int.from_bytes(file.read(8), "little")
        return np.memmap(file, dtype=_record(width), mode="r", offset=8)


def _record(width: int) -> np.dtype[np.void]:
    return np.dtype([("offset", "<i8"), ("size", "<i8"), ("name", f"S{width}")])


def _collect(tar: tarfile.TarFile, length: int, found: list[tuple[int, int, bytes]]) -> None:
    shown = None
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined] # or it keeps all of them
        match = _KEY.fullmatch(member.name)
        if not match or not member.isreg() or member.issparse():
            continue
        key, extension = match.groups()
        if key == shown or not ("." + extension).lower().endswith(EXTENSIONS):
            continue
        if member.offset_data + member.size > length:
            raise tarfile.ReadError(f"{member.name} is not whole")
        shown = key
        found.append((member.offset_data, member.size, member.name.encode(errors="replace")))


def _what_follows(file: BinaryIO, offset: int) -> str:
    """What is wrong with the end of a tar, where tarfile stops without a word; or nothing."""
    file.seek(offset)
    block = file.read(_BLOCK)
    # At the offset is the first of two blocks of zeros, if all is well.
    if len(block) == _BLOCK and not any(block):
        return ""
    return f"the headers end at byte {offset} without the mark of a tar's end"
