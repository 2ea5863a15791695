"""Scenes as a data set: rendered once, kept in the user's cache folder, read by memory map."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.scenes.captions import caption
from distill.scenes.generate import COLOURS, KINDS, SceneParameters, draw_scenes
from distill.scenes.render import render

VERSION = 1
"""Raised whenever the same (seed, index, size) would be drawn differently."""

_CHUNK = 64


def cache_folder() -> Path:
    """Where rendered scenes are kept: $DISTILL_CACHE, or distill/ in the user's cache folder."""
    base = os.environ.get("DISTILL_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "distill"


class Scenes:
    """`count` scenes of the world `seed`, from index `start`, at `size` x `size` pixels.

    `images` (N, 3, S, S) uint8 RGB, `instances` and `segmentation` (N, S, S) uint8 and `depth`
    (N, S, S) float16 are memory maps, drawn on first use and kept for later processes.

    Raises:
        ValueError: if count or size is not positive, or the seed is negative.
    """

    def __init__(self, count: int, size: int, seed: int = 0, start: int = 0):
        if count < 1 or size < 8 or seed < 0 or start < 0:
            raise ValueError(
                f"scenes need count >= 1, size >= 8, seed >= 0 and start >= 0, "
                f"not count={count}, size={size}, seed={seed}, start={start}"
            )
        self.count, self.size, self.seed, self.start = count, size, seed, start
        self.parameters: SceneParameters = draw_scenes(seed, np.arange(start, start + count))
        folder = self._rendered()
        self.images = self._map(folder, "images")
        self.instances = self._map(folder, "instances")
        self.segmentation = self._map(folder, "segmentation")
        self.depth = self._map(folder, "depth")

    def __len__(self) -> int:
        return self.count

    @property
    def labels(self) -> NDArray[np.int64]:
        """(N,) class of the main shape, one of 64."""
        return self.parameters.label

    @property
    def captions(self) -> list[str]:
        """One sentence a scene."""
        return [caption(self.parameters, row) for row in range(self.count)]

    @property
    def attributes(self) -> NDArray[np.bool_]:
        """(N, 64): which (kind, colour) pairs the scene shows, column kind * 8 + colour."""
        p = self.parameters
        out = np.zeros((self.count, len(KINDS) * len(COLOURS)), dtype=bool)
        rows, slots = np.nonzero(p.present)
        out[rows, p.kind[rows, slots] * len(COLOURS) + p.colour[rows, slots]] = True
        return out

    @staticmethod
    def _map(folder: Path, name: str) -> np.ndarray:
        return np.load(folder / f"{name}.npy", mmap_mode="r")

    def _rendered(self) -> Path:
        name = f"scenes-v{VERSION}-seed{self.seed}-start{self.start}-n{self.count}-{self.size}px"
        folder = cache_folder() / name
        if (folder / "done.json").exists():
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
        try:
            self._draw(beside)
            try:
                beside.rename(folder)
            except OSError:  # another process was first: its pictures are the same
                if not (folder / "done.json").exists():
                    raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        return folder

    def _draw(self, folder: Path) -> None:
        n, s = self.count, self.size

        def create(name: str, shape: tuple[int, ...], dtype: type) -> np.memmap:
            path = folder / f"{name}.npy"
            return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)

        images = create("images", (n, 3, s, s), np.uint8)
        instances = create("instances", (n, s, s), np.uint8)
        segmentation = create("segmentation", (n, s, s), np.uint8)
        depth = create("depth", (n, s, s), np.float16)
        for first in range(0, n, _CHUNK):
            rows = slice(first, first + _CHUNK)
            drawn = render(self.parameters.rows(rows), s)
            images[rows] = drawn.image.numpy()
            instances[rows] = drawn.instances.numpy()
            segmentation[rows] = drawn.segmentation.numpy()
            depth[rows] = drawn.depth.numpy()
        for array in (images, instances, segmentation, depth):
            array.flush()
        (folder / "done.json").write_text(json.dumps({"version": VERSION, "count": n, "size": s}))
