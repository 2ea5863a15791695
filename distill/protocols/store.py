"""Features of whole data sets on disk: computed once, read by every task.

They are filed by what they were made of: the encoder, the pictures, the view and its size. In
FOLDER/DIGEST/ lie about.json, which says so in words, and a file for every CHUNK pictures. What is
there when a process ends is whole, and a second run computes only what is missing.

The encoder sees uint8 pixels divided by 255 on its device, in its own dtype, in eval mode and
without gradients. Summaries are kept in float32 and dense tokens as the encoder gives them.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.data.source import IndexedSource
from distill.files import write_whole, writing
from distill.probes.extract import frozen
from distill.probes.models import CannotProbe, Encoder
from distill.protocols.chunks import CHUNK, chunk_file, is_whole, stored_rows
from distill.protocols.outbox import Outbox
from distill.protocols.pictures import Shown, shown_batches
from distill.protocols.task import Stored, View
from distill.protocols.trouble import Trouble, raise_shared
from students.errors import UserError
from students.features import Features

KINDS = ("summary", "dense")
"""What is kept: "dense", all; "summary", of the dense tokens only their average."""


def print_line(line: str) -> None:
    """One line for the user."""
    print(f"distill: {line}", file=sys.stderr)


def encoder_identity(encoder: nn.Module, words: str) -> str:
    """A SHA-256 of an encoder's weights (names, types, shapes, bytes) and of `words`, which say
    what weights do not: its name, architecture, sizes, pixel statistics."""
    digest = hashlib.sha256(words.encode())
    for name, value in sorted(encoder.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"\0{name} {value.dtype} {tuple(value.shape)}\0".encode())
            content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(content.numpy().data)
        else:
            digest.update(f"\0{name} {value!r}\0".encode())
    return digest.hexdigest()


class FeatureStore:
    """Features of data sets in `folder`, which all ranks share.

    Args:
        folder: made when something is kept.
        rank, ranks: chunk i is computed by rank i % ranks.
        barrier: waits until all ranks are there.
        batch: pictures a forward pass, at most CHUNK.
        workers: processes that read pictures; 0 reads them in this one.
        progress: told (pictures done, of all of this rank's).
        say: takes a line for the user: a damaged chunk.

    """

    def __init__(
        self,
        folder: Path,
        *,
        rank: int = 0,
        ranks: int = 1,
        barrier: Callable[[], object] = lambda: None,
        batch: int = 64,
        workers: int = 2,
        progress: Callable[[int, int], None] | None = None,
        say: Callable[[str], None] = print_line,
    ):
        self.folder, self.rank, self.ranks, self.barrier = folder, rank, ranks, barrier
        self.batch, self.workers = min(batch, CHUNK), workers
        self.progress, self.say = progress or (lambda done, total: None), say
        self._known: dict[Path, Stored] = {}

    def features(
        self,
        encoder: Encoder,
        encoder_identity: str,
        pictures: IndexedSource,
        pictures_identity: str,
        view: View,
        device: torch.device | str,
        *,
        kind: str = "dense",
        name: str = "the model",
    ) -> Stored:
        """The features of all `pictures` in a view; what is not there is computed on `device`.

        All ranks call this with the same arguments. With `kind` "summary" dense tokens are kept as
        their average over the grid only, `dense` (N, 1, 1, D) float32: of a large data set all of
        them are terabytes.

        Args:
            encoder: on `device`, called with float pixels in [0, 1] and `view.size`.
            encoder_identity: tells its features from any other's, as `encoder_identity` does.
            pictures: all of them are read.
            pictures_identity: tells them from any others.
            view: what the encoder is shown.
            device: of the encoder.
            kind: one of KINDS.
            name: of the model, for messages.

        Raises:
            UserError: if pictures cannot be read: how many, and the first; if the disk is full.
            CannotProbe: if the model's features are not finite, or it gives none.
        """
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r}: expected one of {', '.join(KINDS)}")
        key = {
            "encoder": encoder_identity,
            "pictures": pictures_identity,
            "count": len(pictures),
            "view": view.name,
            "size": view.size,
            "kept": kind,
            "chunk": CHUNK,
        }
        content = json.dumps(key, sort_keys=True).encode()
        folder = self.folder / hashlib.sha256(content).hexdigest()[:24]
        if folder not in self._known:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            if self.rank == 0:
                about = {"what": _in_words(name, len(pictures), view, kind), "key": key}
                write_whole(folder / "about.json", json.dumps(about, indent=2) + "\n")
            work = _Work(encoder, Shown(pictures, view), torch.device(device), kind, name)
            self._fill(folder, work)
            count = len(pictures)
            summary, dense = (stored_rows(folder, each, count) for each in ("summary", "dense"))
            self._known[folder] = Stored(summary, dense, averaged=kind == "summary")
        return self._known[folder]

    def _fill(self, folder: Path, work: _Work) -> None:
        """All chunks are there after this, on every rank, or it raises the same on every rank."""
        trouble = Trouble()
        try:
            self._compute(folder, work, trouble)
        except CannotProbe as reason:
            trouble.cannot = str(reason)
        except UserError as error:
            trouble.mend = str(error)
        raise_shared(trouble, folder, self.rank, self.ranks, self.barrier, len(work.shown))
        for number in range(_chunks(len(work.shown))):
            if not chunk_file(folder, number).exists():
                raise RuntimeError(f"{chunk_file(folder, number)}: its rank has not written it")

    def _compute(self, folder: Path, work: _Work, trouble: Trouble) -> None:
        chunks = [
            range(first, min(first + CHUNK, len(work.shown)))
            for first in range(self.rank * CHUNK, len(work.shown), self.ranks * CHUNK)
        ]
        missing = [rows for rows in chunks if not self._is_there(folder, rows)]
        total, left = (sum(len(rows) for rows in some) for some in (chunks, missing))
        done = total - left
        self.progress(done, total)
        # Batches end with their chunk: so features do not depend on which other chunks are missing.
        batches = [
            rows[i : i + self.batch] for rows in missing for i in range(0, len(rows), self.batch)
        ]
        loader = shown_batches(work.shown, batches, self.workers, work.device.type == "cuda")
        with (
            frozen(work.encoder),
            closing(loader) as loaded,
            Outbox(work.device, work.name) as outbox,
        ):
            for rows, (pixels, bad) in zip(batches, loaded, strict=True):
                trouble.add(bad)
                # Where a picture is missing only the others like it are still counted.
                if not trouble.unreadable:
                    outbox.add(work.features(pixels))
                    if rows.stop % CHUNK == 0 or rows.stop == len(work.shown):
                        outbox.send(chunk_file(folder, rows.start // CHUNK))
                done += len(rows)
                self.progress(done, total)

    def _is_there(self, folder: Path, rows: range) -> bool:
        path = chunk_file(folder, rows.start // CHUNK)
        if not path.exists():
            return False
        whole = is_whole(path, len(rows))
        if not whole:
            self.say(f"{path} is damaged; its {len(rows)} pictures are computed again")
        return whole


@dataclass
class _Work:
    """An encoder, what it is shown and what is kept of its features."""

    encoder: Encoder
    shown: Shown
    device: torch.device
    kind: str
    name: str

    def features(self, pixels: Tensor) -> Features:
        """Of pixels (B, 3, S, S) uint8, on the device."""
        moved = pixels.to(self.device, non_blocking=True).float().div_(255)
        found = self.encoder(moved, self.shown.view.size)
        if found.summary is None and found.dense is None:
            raise CannotProbe(f"{self.name} gives neither summary nor dense features")
        return found.map(self._kept)

    def _kept(self, kind: str, tokens: Tensor) -> Tensor:
        if kind == "dense" and self.kind == "summary":
            return tokens.float().mean((1, 2), keepdim=True)
        return tokens.float() if kind == "summary" else tokens


def _chunks(count: int) -> int:
    return -(-count // CHUNK)


def _in_words(name: str, count: int, view: View, kind: str) -> str:
    dense = "dense tokens" if kind == "dense" else "averages of dense tokens"
    return (
        f"summaries and {dense} of {count} pictures by {name}, each shown at {view.size} x "
        f"{view.size} pixels ({view.name}); {CHUNK} pictures a file"
    )
