"""Random draws from keys, never from global state: the same in every process and after a resume."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def key(*parts: object) -> int:
    """A 56-bit seed from names and numbers."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7], "big")


def draw_size(sizes: Sequence[int], seed: int, stage: str, step: int, name: str) -> int:
    """The image size of `name` (a student or a teacher) in one step of a stage, uniform."""
    return sizes[key("size", seed, stage, step, name) % len(sizes)]
