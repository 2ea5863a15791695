"""The annotated images that probes learn from and are scored on: scenes nobody was trained on."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from distill.probes.masks import Prompts, object_prompts
from distill.probes.models import SpaceOwner
from distill.scenes.dataset import Scenes

DATASET = "scenes"
WORLD_SEED = 10_000
"""Added to the validation's seed; training worlds have small seeds."""
TEST_START = 1_000_000
"""Index of the first test scene, beyond any training split of the same world."""

_TEXT_BATCH = 256


class World:
    """A train and a test split of scenes at one image size, without a scene in common.

    Annotations are CPU tensors: labels (N,) int64, attributes (N, 64) bool, segmentation and
    instances (N, S, S) uint8, depth (N, S, S) float32 in scene units.

    Raises:
        ValueError: if `train` reaches into the test split, or as `Scenes` does.
    """

    def __init__(self, image_size: int, train: int, test: int, seed: int = 0):
        if train > TEST_START:
            raise ValueError(f"at most {TEST_START} training scenes, not {train}")
        self.image_size = image_size
        self.train = Scenes(train, image_size, seed=WORLD_SEED + seed)
        self.test = Scenes(test, image_size, seed=WORLD_SEED + seed, start=TEST_START)

    def split(self, name: str) -> Scenes:
        """The scenes of "train" or "test"."""
        return {"train": self.train, "test": self.test}[name]

    def annotation(self, name: str, split: str) -> Tensor:
        """One of the annotations above, by name, of one split."""
        array = np.array(getattr(self.split(split), name))
        tensor = torch.from_numpy(array)
        return tensor.float() if name == "depth" else tensor

    @cached_property
    def captions(self) -> list[str]:
        """A sentence for each test scene."""
        return self.test.captions

    @cached_property
    def prompts(self) -> Prompts:
        """A point in each visible object of the test scenes."""
        return object_prompts(self.annotation("instances", "test"))


class TextEmbeddings:
    """Embeddings of the test captions by each teacher's text tower, computed once."""

    def __init__(self) -> None:
        self._known: dict[str, Tensor] = {}

    def of(self, name: str, teacher: SpaceOwner, captions: list[str]) -> Tensor:
        """(N, D) float32 on the CPU for N captions, each different one embedded once."""
        if name not in self._known:
            texts = list(dict.fromkeys(captions))
            row = {text: i for i, text in enumerate(texts)}
            tower = teacher.text_tower
            with torch.no_grad():
                parts = [
                    tower(texts[start : start + _TEXT_BATCH]).float().cpu()
                    for start in range(0, len(texts), _TEXT_BATCH)
                ]
            self._known[name] = torch.cat(parts)[torch.tensor([row[c] for c in captions])]
        return self._known[name]
