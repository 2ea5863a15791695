"""The pictures of a validation: what several models answered, side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distill.datasets.parts import (
    Classification,
    Correspondence,
    Depth,
    EvaluationSet,
    Instances,
    Segmentation,
)
from distill.protocols.answers import shown_pairs, shown_prompts, shown_queries
from distill.protocols.views import squashed
from distill.report.correspondences import correspondence_group
from distill.report.gallery import Group
from distill.report.panels import depth_group, feature_group, mask_group, segmentation_group
from distill.report.retrieval_rows import Answer, retrieval_group

Answers = Mapping[str, Mapping[str, Tensor]]
"""By model, a task's answers by number."""

_SIDE = 160


def drawn(name: str, data: EvaluationSet, task: str, size: int, answers: Answers) -> Group | None:
    """The group of one task on one data set, None where nothing is to be drawn of it.

    `answers` are those of `distill.protocols.answers`, or of the task itself ("features" for dense
    features). Drawn is what all models answered.
    """
    given = {model: found for model, found in answers.items() if found}
    common = set.intersection(*(set(found) for found in given.values())) if given else set()
    numbers, draw = sorted(common, key=int), _DRAWN.get(task)
    if draw is None or not numbers:
        return None
    ours = {model: [found[number] for number in numbers] for model, found in given.items()}
    group = draw(data, [int(number) for number in numbers], ours, size)
    return dataclasses.replace(group, title=f"{name}: {group.title.lower()} at {size} px")


def drawn_at(task: str) -> int:
    """The place of a task's pictures among those of a data set."""
    return list(_DRAWN).index(task) if task in _DRAWN else len(_DRAWN)


def _features(data: EvaluationSet, numbers: list[int], ours: Any, size: int) -> Group:

    view = squashed(size)
    pictures = [view.show(data.pictures.read(number)) for number in numbers]
    return feature_group(pictures, {m: torch.stack(list(d)) for m, d in ours.items()}, _SIDE)


def _segmentation(data: EvaluationSet, numbers: list[int], ours: Any, size: int) -> Group:
    part = data.parts["segmentation"]
    assert isinstance(part, Segmentation)
    pictures = [part.test.pictures.read(number) for number in numbers]
    truths = [part.test.truth(number) for number in numbers]
    return segmentation_group(pictures, truths, ours, part.classes)


def _depth(data: EvaluationSet, numbers: list[int], ours: Any, size: int) -> Group:
    part = data.parts["depth"]
    assert isinstance(part, Depth)
    pictures = [part.test.pictures.read(number) for number in numbers]
    truths = [part.test.truth(number) for number in numbers]
    return depth_group(pictures, truths, ours, part.near, part.far, part.unit)


def _correspondence(data: EvaluationSet, numbers: list[int], ours: Any, size: int) -> Group:
    part = data.parts["correspondence"]
    assert isinstance(part, Correspondence)
    pairs = shown_pairs(part)
    return correspondence_group(part.pictures.read, [pairs[number] for number in numbers], ours)


def _retrieval(data: EvaluationSet, numbers: list[int], ours: Any, size: int) -> Group:
    part = data.parts["classification"]
    assert isinstance(part, Classification)
    queries = shown_queries(part)
    pictures, labels = part.test.pictures, part.test.labels
    asked = [queries[number] for number in numbers]

    def answer(query: int, found: int) -> Answer:
        return Answer(pictures.read(found), bool(labels[found] == labels[query]))

    answers = {
        model: [
            [answer(query, found) for found in nearest.tolist()]
            for query, nearest in zip(asked, rows, strict=True)
        ]
        for model, rows in ours.items()
    }
    return retrieval_group("Image retrieval", [pictures.read(query) for query in asked], answers)


def _masks(data: EvaluationSet, numbers: list[int], ours: Any, size: int) -> Group:
    part, view = data.parts["instances"], squashed(size)
    assert isinstance(part, Instances)
    prompts = shown_prompts(part, size)
    rows = [int(prompts.image[number]) for number in numbers]
    pictures = [view.show(part.test.pictures.read(row)) for row in rows]
    points = [(int(x), int(y)) for x, y in prompts.point[numbers]]
    return mask_group(pictures, [prompts.mask[number] for number in numbers], ours, points)


_DRAWN = {
    "features": _features,
    "segmentation": _segmentation,
    "depth": _depth,
    "correspondence": _correspondence,
    "masks": _masks,
    "image_retrieval": _retrieval,
}
