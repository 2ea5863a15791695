"""Files of stored features: CHUNK pictures each, and rows that are read from them.

A chunk is a safetensors file with `summary` (n, D) and `dense` (n, h, w, D), as far as the model
gives them, and a CRC-32 of both in its metadata. It is written beside, synced and renamed: it is
whole or not there.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from distill.files import sync, writing
from students.features import TOKEN_KINDS, Features

CHUNK = 256
"""Pictures a file."""


def chunk_file(folder: Path, number: int) -> Path:
    """Where a chunk lies."""
    return folder / f"{number:06}.safetensors"


def write_chunk(path: Path, features: Features) -> None:
    """Keep the features of a chunk's pictures; tensors on the CPU.

    Raises:
        UserError: if there is no room, or no right to.
    """
    tensors = {
        kind: tokens.contiguous()
        for kind in TOKEN_KINDS
        if (tokens := features.get(kind)) is not None
    }
    beside = path.with_name(f".{path.name}.new")
    with writing(path):
        try:
            save_file(tensors, beside, {"crc32": str(_checksum(tensors))})
            sync(beside)
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        sync(path.parent)


def is_whole(path: Path, count: int) -> bool:
    """Whether a chunk has features of `count` pictures, as they were written; reads all of it."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {kind: file.get_tensor(kind) for kind in file.keys()}  # noqa: SIM118
            written = (file.metadata() or {}).get("crc32")
    except (OSError, SafetensorError):
        return False
    counts = {len(tokens) for tokens in tensors.values()}
    return written == str(_checksum(tensors)) and counts == {count}


def stored_rows(folder: Path, kind: str, count: int) -> StoredRows | None:
    """The rows of a kind, "summary" or "dense", of `count` pictures; None if chunks have none."""
    with safe_open(chunk_file(folder, 0), "pt") as file:
        if kind not in file.keys():  # noqa: SIM118  (no mapping)
            return None
        return StoredRows(folder, kind, (count, *file.get_slice(kind).get_shape()[1:]))


class StoredRows:
    """Rows of one kind of token in the chunks of a folder: `rows[index]` is read from their memory
    map as float32, in the order asked for; no more than that comes into memory.

    Args:
        folder: of the chunks, all of them there.
        kind: "summary" or "dense".
        shape: of all rows.
    """

    def __init__(self, folder: Path, kind: str, shape: tuple[int, ...]):
        self.folder, self.kind, self.shape = folder, kind, torch.Size(shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Tensor:
        """(n, ...) rows of an int64 tensor (n,) or of a slice.

        Raises:
            IndexError: for a row that is not there.
            TypeError: for any other index.
        """
        if isinstance(index, slice):
            wanted = torch.arange(len(self))[index] if index.step else self._range(index)
        elif isinstance(index, Tensor) and index.dtype == torch.int64 and index.ndim == 1:
            wanted = index.cpu()
        else:
            raise TypeError(f"rows by an int64 tensor (n,) or a slice, not {type(index).__name__}")
        if len(wanted) and not 0 <= int(wanted.min()) <= int(wanted.max()) < len(self):
            raise IndexError(f"rows {int(wanted.min())} to {int(wanted.max())} of {len(self)}")
        found = torch.empty((len(wanted), *self.shape[1:]))
        chunks = wanted // CHUNK
        for number in chunks.unique().tolist():
            places = (chunks == number).nonzero()[:, 0]
            self._read(number, wanted[places] - number * CHUNK, found, places)
        return found

    def _range(self, index: slice) -> Tensor:
        start, stop, _ = index.indices(len(self))
        return torch.arange(start, max(start, stop))

    def _read(self, number: int, rows: Tensor, into: Tensor, places: Tensor) -> None:
        with safe_open(chunk_file(self.folder, number), "pt") as file:
            tokens = file.get_slice(self.kind)
            first, last = int(rows[0]), int(rows[-1])
            if last - first + 1 == len(rows) and bool((rows.diff() == 1).all()):
                into[places] = tokens[first : last + 1].float()
                return
            for row, place in zip(rows.tolist(), places.tolist(), strict=True):
                into[place] = tokens[row : row + 1][0]


def _checksum(tensors: dict[str, Tensor]) -> int:
    crc = 0
    for kind in sorted(tensors):
        crc = zlib.crc32(kind.encode(), crc)
        crc = zlib.crc32(tensors[kind].reshape(-1).view(torch.uint8).numpy().data, crc)
    return crc
