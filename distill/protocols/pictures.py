"""Pictures of an evaluation set as a model is shown them, read by processes of their own."""

from __future__ import annotations

import sys
from collections.abc import Generator, Sequence
from multiprocessing import get_context

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill.data.source import BadSample, IndexedSource
from distill.protocols.task import View
from students.errors import UserError

Bad = list[tuple[int, str]]
"""Number of each picture that cannot be read, and why: `NAME: REASON`."""


class Shown(Dataset):
    """Batches of pictures in a view, by the range of their numbers."""

    def __init__(self, pictures: IndexedSource, view: View):
        self.pictures, self.view = pictures, view

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, rows: range) -> tuple[Tensor, Bad] | UserError:
        """(B, 3, S, S) uint8 of the pictures that can be read, and those that cannot be. An error
        is handed over, since one raised in a worker loses its one line."""
        shown, bad = [], []
        try:
            for row in rows:
                try:
                    shown.append(self.view.show(self.pictures.read(row)))
                except BadSample as reason:
                    bad.append((row, str(reason)))
        except UserError as error:
            return error
        side = self.view.size
        return torch.stack(shown) if shown else torch.empty(0, 3, side, side).byte(), bad


def shown_batches(
    shown: Shown, batches: Sequence[range], workers: int, pinned: bool
) -> Generator[tuple[Tensor, Bad], None, None]:
    """`shown` for each of `batches`, in order, read by `workers` processes (0: by this one).

    Raises:
        UserError: as reading a picture does.
    """
    # Forked workers share the list of files and start at once; only Linux forks safely.
    context = get_context("fork" if sys.platform == "linux" else None)
    workers = min(workers, len(batches))
    loader: DataLoader = DataLoader(
        shown,
        batch_size=None,
        sampler=batches,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pinned,
        multiprocessing_context=context if workers else None,
    )
    for found in loader:
        if isinstance(found, UserError):
            raise found
        yield found


def _as_it_is(found: object) -> object:
    return found
