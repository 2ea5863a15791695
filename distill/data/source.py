"""What a source of training images is to the loader."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class BadSample(Exception):  # noqa: N818 - an event that the loader counts, not a user's error
    """A sample that cannot be decoded: `name` and `reason`, one line."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


class Source(Protocol):
    """Images by index. The same index gives the same image in every process.

    What the indices are, and in which order they are drawn, differs: an IndexedSource has 0 to
    len - 1; a distill.data.shards.ShardedSource learns how many there are as it goes.
    """

    def read(self, index: int) -> Tensor:
        """(3, H, W) uint8 RGB of sample `index`.

        Raises:
            BadSample: if it cannot be decoded.
        """

    def name(self, index: int) -> str:
        """What a person calls sample `index`: for a file, its path within the folder."""


class IndexedSource(Source, Protocol):
    """A source whose size is known and any sample of which can be read at any time."""

    def __len__(self) -> int:
        """How many samples there are, at least 1: indices 0 to len - 1."""
