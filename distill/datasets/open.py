"""From a line, `LAYOUT:PATH,key=value`, to a data set that tasks can be run on."""

from __future__ import annotations

from collections.abc import Mapping

from distill.datasets import (
    captions,
    class_folders,
    depth_files,
    landmarks,
    mask_folders,
    scene_set,
    spair,
)
from distill.datasets.layout import Layout, requested
from distill.datasets.parts import EvaluationSet

_MODULES = (class_folders, mask_folders, depth_files, spair, captions, landmarks, scene_set)

LAYOUTS: Mapping[str, Layout] = {
    layout.name: layout for module in _MODULES for layout in module.LAYOUTS
}
"""By name, in the order in which docs/datasets.md has them."""


def open_evaluation(spec: str) -> EvaluationSet:
    """The data set that `spec` names: lists are read and files are looked for, pictures and maps
    are left for later (but for the masks of `masks:` whose classes nobody has counted).

    Args:
        spec: `LAYOUT:PATH[,key=value...]`, as in `ade20k:/data/ADEChallengeData2016`.

    Raises:
        UserError: one line, if the layout or a key is unknown, the path is not there or holds
            something else than the layout says, or its files do not fit each other.
    """
    layout, request = requested(spec, LAYOUTS)
    return layout.open(request)
