"""Layout `scenes:`: the built-in world, for every task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.data.source import IndexedSource
from distill.datasets.files import Identity
from distill.datasets.layout import Layout, Request
from distill.datasets.parts import (
    Annotated,
    Captions,
    Classification,
    Correspondence,
    Depth,
    EvaluationSet,
    Instances,
    KeypointPair,
    Labelled,
    Landmarks,
    Part,
    Segmentation,
)
from distill.scenes.dataset import VERSION, Scenes
from distill.scenes.generate import COLOURS, FAR, KINDS, NEAR
from distill.scenes.render import keypoints

QUERY_EVERY = 8
"""Each so many-th test scene is a landmarks' query, the others are the gallery."""

INWARD = 0.8
"""How far from a shape's centre its extremes are taken for keypoints: on its edge proper, whether a
point is on the shape or beside it would be a matter of rounding."""


class SceneSource:
    """Some scenes as pictures, an IndexedSource; named as distill.data.scenes names them."""

    def __init__(self, scenes: Scenes, rows: NDArray[np.int64] | None = None):
        self.scenes = scenes
        self.rows = np.arange(len(scenes)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Tensor:
        """See Source.read; never a bad sample."""
        return torch.from_numpy(np.array(self.scenes.images[self.rows[index]]))

    def name(self, index: int) -> str:
        """`scene SEED:INDEX`."""
        return f"scene {self.scenes.seed}:{self.scenes.start + int(self.rows[index])}"


@dataclass(frozen=True)
class _Truth:
    """One of the annotations of scenes, by number."""

    scenes: Scenes
    name: str

    def __call__(self, index: int) -> Tensor:
        values = np.array(getattr(self.scenes, self.name)[index])
        return torch.from_numpy(values.astype(np.float32 if self.name == "depth" else np.int64))


def _open(request: Request) -> EvaluationSet:
    # Here, because probes read `distill.datasets.parts`.
    from distill.probes.world import TEST_START, World

    size, seed = request.whole("size", 96, 8), request.whole("seed", 0, 0)
    learnt, scored = (request.whole(key, 1024, 1) for key in ("train", "test"))
    if learnt > TEST_START:
        raise request.error(f"train={learnt} must be at most {TEST_START}")
    world = World(size, learnt, scored, seed)
    identity = Identity(Request(request.layout, "", {}))
    identity.words(*(str(number) for number in (VERSION, size, learnt, scored, seed)))
    train, test = world.train, world.test
    pictures = SceneSource(test)

    def annotated(name: str) -> tuple[Annotated, Annotated]:
        return (
            Annotated(SceneSource(train), _Truth(train, name)),
            Annotated(pictures, _Truth(test, name)),
        )

    labelled = [Labelled(SceneSource(s), torch.from_numpy(s.labels.copy())) for s in (train, test)]
    classes = tuple(f"{colour} {kind}" for kind in KINDS for colour in COLOURS)
    pairs = tuple(_pairs(test))
    parts: dict[str, Part] = {
        "classification": Classification(labelled[0], labelled[1], classes),
        "segmentation": Segmentation(*annotated("segmentation"), ("background", *KINDS)),
        "depth": Depth(*annotated("depth"), NEAR, FAR, unit="scene units"),
        "instances": Instances(annotated("instances")[1]),
        "captions": Captions(pictures, tuple(world.captions), torch.arange(len(test))),
    }
    if pairs:
        parts["correspondence"] = Correspondence(pictures, pairs)
    if len(test) > 1:
        parts["landmarks"] = _landmarks(test)
    return EvaluationSet("scenes", request.layout, identity.digest(), pictures, parts)


def _pairs(scenes: Scenes) -> Iterator[KeypointPair]:
    """Kind by kind, each scene that shows it once with the next such scene. Keypoints are those of
    `render.keypoints`, drawn INWARD, that hit the shape in both."""
    parameters = scenes.parameters
    points = keypoints(parameters, scenes.size)
    points[:, :, 1:] = points[:, :, :1] + INWARD * (points[:, :, 1:] - points[:, :, :1])
    shown = np.stack([(parameters.kind == k) & parameters.present for k in range(len(KINDS))])
    for kind, slots in enumerate(shown):
        rows = np.flatnonzero(slots.sum(1) == 1)
        for source, target in pairwise(rows.tolist()):
            slot, other = int(slots[source].argmax()), int(slots[target].argmax())
            seen = _visible(scenes, source, slot, points[source, slot])
            seen &= _visible(scenes, target, other, points[target, other])
            if not seen.any():
                continue
            where = np.nonzero(scenes.instances[target] == other + 1)
            yield KeypointPair(
                source,
                target,
                # The renderer counts from the edge of the first pixel, keypoints from its middle.
                torch.from_numpy(points[source, slot][seen] - 0.5).float(),
                torch.from_numpy(points[target, other][seen] - 0.5).float(),
                float(max(np.ptp(axis) + 1 for axis in where)),
                KINDS[kind],
            )


def _visible(scenes: Scenes, row: int, slot: int, points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(K,) of points (K, 2): whether the pixel that each is in shows the shape."""
    at = np.floor(points).astype(np.int64)
    inside = ((at >= 0) & (at < scenes.size)).all(1)
    x, y = at.clip(0, scenes.size - 1).T
    return inside & (np.array(scenes.instances[row])[y, x] == slot + 1)


def _landmarks(scenes: Scenes) -> Landmarks:
    """Easy: the same main shape. Hard: a shape of the same kind and colour. No junk."""
    every = np.arange(len(scenes))
    asked = every[every % QUERY_EVERY == 0]
    gallery = every[every % QUERY_EVERY != 0]
    labels, attributes = scenes.labels, scenes.attributes
    easy, hard = [], []
    for query in asked:
        same = labels[gallery] == labels[query]
        shares = (attributes[gallery] & attributes[query]).any(1)
        easy.append(torch.from_numpy(np.flatnonzero(same)))
        hard.append(torch.from_numpy(np.flatnonzero(shares & ~same)))
    queries: IndexedSource = SceneSource(scenes, asked)
    none = tuple(torch.zeros(0, dtype=torch.int64) for _ in asked)
    return Landmarks(queries, SceneSource(scenes, gallery), tuple(easy), tuple(hard), none)


LAYOUTS = (
    Layout(
        "scenes",
        "scenes:size=96,train=1024,test=1024,seed=0",
        ("size", "train", "test", "seed"),
        (
            "classification",
            "segmentation",
            "depth",
            "instances",
            "captions",
            "correspondence",
            "landmarks",
        ),
        _open,
    ),
)
