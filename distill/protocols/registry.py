"""The tasks of `distill validate`, by name."""

from __future__ import annotations

from collections.abc import Iterable

from distill.protocols import (
    affinity,
    agreement,
    caption_retrieval,
    correspondence,
    depth,
    image_retrieval,
    knn,
    landmarks,
    linear,
    masks,
    segmentation,
    zero_shot,
)
from distill.protocols.task import FieldTask

TASKS: dict[str, FieldTask] = {
    module.TASK.name: module.TASK
    for module in (
        knn,
        linear,
        zero_shot,
        image_retrieval,
        caption_retrieval,
        landmarks,
        segmentation,
        depth,
        correspondence,
        affinity,
        masks,
        agreement,
    )
}

_THROUGH_TEACHERS = ("zero_shot", "caption_retrieval", "masks", "agreement")


def uses_heads(tasks: Iterable[FieldTask]) -> bool:
    """Whether any of the tasks asks for a teacher's text tower, mask decoder or features."""
    return any(task.name in _THROUGH_TEACHERS for task in tasks)
