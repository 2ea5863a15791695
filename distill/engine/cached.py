"""A teacher's features from the cache where they are; computed, and kept, where they are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.cache import (
    ChannelStatistics,
    FeatureCache,
    RowLayout,
    Store,
    StoreKey,
    estimate_bytes,
    teacher_identity,
    views_identity,
)
from distill.recipe.schema import CacheConfig, DataConfig
from distill.scenes.dataset import cache_folder
from students import Features
from students.normalisers import Normaliser
from students.pixels import Size
from teachers import Teacher

if TYPE_CHECKING:
    from distill.engine.targets import TargetTeacher


def open_cache(config: CacheConfig | None, say: Callable[[str], None]) -> FeatureCache | None:
    """The cache that a recipe asks for; None if it asks for none.

    Raises:
        UserError: as FeatureCache.
    """
    if config is None:
        return None
    return FeatureCache(cache_of(config), int(config.limit_gb * 1e9), config.format, say)


def cache_of(config: CacheConfig) -> Path:
    """The folder of a recipe's cache."""
    return cache_folder() / "features" if config.folder is None else Path(config.folder)


class CachedTeacher:
    """The cache as one teacher of a stage sees it.

    Args:
        cache: of the run.
        teacher: whose features are kept; not a sharded one, which all ranks have to call together.
        label: what a person calls it.
        data: where views come from.
        canvas: side of a view in pixels.
    """

    def __init__(
        self, cache: FeatureCache, teacher: Teacher, label: str, data: DataConfig, canvas: int
    ):
        self.cache, self.label = cache, label
        self.identity = teacher_identity(teacher)
        views = data.views
        self.views = views_identity(views.policy, views.scale, data.view_seed, canvas)
        self.sources = [source.source for source in data.train.values()]
        self.statistics: Mapping[str, ChannelStatistics] | None = None

    def calibrated(self, normalisers: Mapping[str, Normaliser]) -> None:
        """From now on rows of a lossy format can be kept: they hold normalised tokens."""
        self.statistics = {
            kind: ChannelStatistics(*(given.cpu() for given in normaliser.channels()))
            for kind, normaliser in normalisers.items()
        }

    def features(
        self,
        compute: Callable[[Tensor], Features],
        pixels: Tensor,
        samples: NDArray[np.int64],
        prints: NDArray[np.uint32] | None,
        size: Size,
    ) -> Features:
        """Features of pixels (b, 3, H, W) on the pixels' device, as `compute` gives them.

        While the cache grows, rows are computed together if any of them is missing, so that what is
        computed does not depend on what is kept; where it has stopped, the missing ones alone.
        """
        store = self._store(size)
        if store is None:
            return compute(pixels)
        held, found = store.get(samples, prints, pixels.device)
        if bool(found.all()):
            return held
        if store.growing or not bool(found.any()):
            features = compute(pixels)
            store.put(samples, features, prints)
            return store.as_kept(features)
        missing = (~found).nonzero()[:, 0]
        computed = store.as_kept(compute(pixels[missing.to(pixels.device)]))
        order = torch.argsort(torch.cat([found.nonzero()[:, 0], missing])).to(pixels.device)

        def joined(kind: str, tokens: Tensor) -> Tensor:
            others = computed.get(kind)
            assert others is not None
            return torch.cat([tokens, others]).index_select(0, order)

        return held.map(joined)

    def _store(self, size: Size) -> Store | None:
        """Where rows of this size are; None for a lossy format that is not calibrated yet."""
        key = StoreKey(self.identity, size, self.views, self.label)
        exact = self.cache.format in ("exact", self.identity["dtype"])
        if not exact and self.statistics is None:
            return None
        return self.cache.store(key, self.sources, self.statistics)


def most_bytes(teachers: Iterable[TargetTeacher], views: int, format: str) -> int:
    """What these teachers' features of so many views come to on disk, at all of their sizes."""
    layouts = []
    for target in teachers:
        teacher = target.teacher
        given = {"summary": teacher.summary_dim, "dense": teacher.dense_dim}
        kinds = {kind: given[kind] for kind in teacher.spec.tokens}
        dtype = str(teacher.dtype).removeprefix("torch.")
        for size in target.sizes if target.cached is not None else ():
            side = size // teacher.stride
            dense = kinds.get("dense")
            grid = None if dense is None else (side, side)
            layouts.append(RowLayout(kinds.get("summary"), dense, grid, dtype, format))
    return estimate_bytes(views, layouts)
