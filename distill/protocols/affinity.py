"""Instance affinity on any set with masks of objects: do two patches agree more within an object
than across objects?

Protocol: `distill.probes.affinity`, training-free, with pictures and their maps of objects
squashed to size (maps by nearest pixel). Features are brought to one grid, a patch every 8 pixels
and at most 32 a side, and the mean over all test pictures is subtracted before the cosine; AUC of
same-object against other-object pairs of patches, in percent, mean over the pictures that have
both sorts. Two passes over the features, in chunks: one for the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.datasets.parts import Instances
from distill.probes.affinity import PATCH, image_affinities, mean_affinity, patch_owners
from distill.probes.masks import squashed_instances
from distill.probes.tasks import Outcome
from distill.protocols.spaces import kept
from distill.protocols.task import FieldTask, Rows, Setting
from distill.protocols.views import squashed
from students.features import resize_grid

SIDE = 32
"""Most patches a side: pairs grow with its fourth power."""

_CHUNK = 16


def run(setting: Setting) -> Outcome:
    """`auc` in percent, and the pictures counted.

    Raises:
        CannotProbe: if the model has no dense features.
        NothingToScore: if no picture has pairs of both sorts.
    """
    part = setting.data.parts["instances"]
    assert isinstance(part, Instances)
    size, device = setting.size, setting.device
    dense = kept(setting, setting.features(part.test.pictures, squashed(size)), "dense")
    side = min(max(size // PATCH, 1), SIDE)
    mean = _mean(dense, side, device)
    areas = []
    for start in range(0, len(dense), _CHUNK):
        tokens = _tokens(dense, start, side, device)
        maps = [
            squashed_instances(part.test.truth(i), size) for i in range(start, start + len(tokens))
        ]
        owners = patch_owners(torch.stack(maps).to(device), (side, side))
        areas.append(image_affinities(tokens, owners, mean))
        setting.progress(start + len(tokens), len(dense))
    value, counted = mean_affinity(torch.cat(areas))
    return Outcome({"auc": value}, counted)


def _tokens(dense: Rows, start: int, side: int, device: torch.device | str) -> Tensor:
    return resize_grid(dense[start : start + _CHUNK].to(device), (side, side))


def _mean(dense: Rows, side: int, device: torch.device | str) -> Tensor:
    """(D,) of all tokens on the common grid; in float64, since there may be many."""
    total = sum(
        _tokens(dense, start, side, device).sum((0, 1, 2)).double()
        for start in range(0, len(dense), _CHUNK)
    )
    assert isinstance(total, Tensor)
    return (total / (len(dense) * side * side)).float()


TASK = FieldTask(
    name="affinity",
    part="instances",
    kind="dense",
    metrics=("auc",),
    protocol="dense, squashed to size, mean removed, cosine, training-free, pairs of object "
    f"patches within a picture, a patch every {PATCH} pixels, at most {SIDE} a side",
    run=run,
)
