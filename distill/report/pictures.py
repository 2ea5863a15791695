"""The pictures of a report: what each model sees in a few scenes, and what is read off it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from distill.probes.depth import predict_depth, rmse, train_depth
from distill.probes.extract import apply_space, extract
from distill.probes.linear_head import LinearHead, Schedule
from distill.probes.masks import Prompts, best_masks, largest_prompts, object_prompts
from distill.probes.models import ProbedModel, SpaceOwner
from distill.probes.segmentation import (
    confusion,
    mean_iou,
    predict_segmentation,
    train_segmentation,
)
from distill.report.colours import (
    CLASS_COLOURS,
    FAR_COLOUR,
    NEAR_COLOUR,
    colour_classes,
    colour_depth,
    overlay_mask,
)
from distill.report.principal import shared_colours
from distill.scenes.dataset import Scenes
from distill.scenes.generate import FAR, KINDS, NEAR
from students.features import TOKEN_KINDS, resize_grid

SHOWN = 4
"""Scenes in the grid: the first of the test scenes in which an object can be pointed at."""

_SIDE = 128
_TRAIN, _HELD_OUT = 192, 64
# Far less than the probes that make numbers take: enough for a picture.
_SCHEDULE = Schedule(steps=60, batch=8, lr=2.0e-2, weight_decay=1e-3, warmup=6, clip=35.0)
_CLASSES = len(KINDS) + 1

Cells = list[tuple[str, NDArray[np.uint8]]]
"""(title, RGB pictures (SHOWN, H, W, 3)) of one group, in order."""


def draw_pictures(
    models: Sequence[ProbedModel],
    teachers: Mapping[str, SpaceOwner],
    scenes_test: Scenes,
    scenes_train: Scenes,
    size: int,
    folder: Path,
    device: torch.device | str = "cpu",
) -> None:
    """Draw the grid of a report: PNG files of 128 pixels and pictures.json in `folder`.

    A row a scene, with the image; the dense features of every teacher, proxy and student at
    `size` pixels in the colours that `shared_colours` gives them; and segmentation, depth and a
    mask as read off the last stage's first student (or a proxy) and off the best teacher of each,
    beside the truth. Heads for them are trained on at most 256 of `scenes_train`, the last quarter
    of which chooses the teacher. What no model at hand can do is left out.

    pictures.json is {"columns": [str], "rows": [{"caption", "cells": [{"title", "group",
    "file"}]}], "legends": {title: [{"name", "colour"}]}, "notes": [str]}, files beside it; a note
    tells which tokens were left out of the fit of the colours.

    Raises:
        ValueError: if no test scene has an object to point at, or there are fewer than 8 training
            scenes.
    """
    prompts = largest_prompts(
        object_prompts(torch.from_numpy(np.array(scenes_test.instances))), SHOWN
    )
    chosen = prompts.image.numpy()
    images = np.array(scenes_test.images[chosen])
    shown = [model for model in models if model.role != "untrained"]
    features = [extract(model.encoder, images, size, device) for model in shown]
    pictures = images.transpose(0, 2, 3, 1)
    groups: dict[str, Cells] = {"Image": [("input", pictures)]}
    dense = [
        (model.name, given.dense)
        for model, given in zip(shown, features, strict=True)
        if given.dense is not None
    ]
    groups["Dense features"], notes = _features(dense, images.shape[-1])
    readers = _readers(shown)
    groups |= _linear_predictions(readers, scenes_test, scenes_train, chosen, size, device)
    groups |= _masks(readers, teachers, pictures, prompts, size, device)
    captions = [scenes_test.captions[row] for row in chosen]
    _write(groups, captions, notes, Path(folder))


def _features(dense: Sequence[tuple[str, Tensor]], side: int) -> tuple[Cells, list[str]]:
    """Each model's features in colours that are comparable, and what was left out of their fit."""
    if not dense:
        return [], []
    names = [name for name, _ in dense]
    colours = shared_colours([each for _, each in dense], side)
    found = zip(names, colours.outliers, strict=True)
    notes = [f"{name}: {outliers.sentence}" for name, outliers in found if outliers.number]
    return list(zip(names, colours.pictures, strict=True)), notes


def _readers(shown: Sequence[ProbedModel]) -> list[ProbedModel]:
    """The teachers, then the first student of the last stage that has one; else a proxy."""
    teachers = [model for model in shown if model.role == "teacher"]
    for role in ("student", "proxy"):
        ours = [model for model in shown if model.role == role]
        if ours:
            return [*teachers, next(m for m in ours if m.stage == ours[-1].stage)]
    return teachers


def _linear_predictions(
    readers: Sequence[ProbedModel],
    scenes_test: Scenes,
    scenes_train: Scenes,
    chosen: NDArray,
    size: int,
    device: torch.device | str,
) -> dict[str, Cells]:
    """Segmentation and depth of the chosen test scenes: truth, best teacher, student."""
    total = min(len(scenes_train), _TRAIN + _HELD_OUT)
    train = total - total // 4
    if total < 8:
        raise ValueError(f"{total} training scenes are too few to train heads for pictures")
    learnt = np.array(scenes_train.images[:total])
    looked_at = np.array(scenes_test.images[chosen])
    stored = []
    for model in readers:
        seen = extract(model.encoder, learnt, size, device).dense
        asked = extract(model.encoder, looked_at, size, device).dense
        if seen is not None and asked is not None:
            stored.append((model, seen, asked))

    def cells(
        labels: Tensor,
        truth: NDArray,
        fitted: Callable[[Tensor, Tensor], LinearHead],
        predicted: Callable[[LinearHead, Tensor], Tensor],
        score: Callable[[Tensor, Tensor], float],
        colour: Callable[[NDArray], NDArray[np.uint8]],
    ) -> Cells:
        best: tuple[float, str, Tensor] | None = None
        ours: Cells = []
        for model, seen, asked in stored:
            head = fitted(seen[:train], labels[:train])
            answer = predicted(head, asked)
            if model.role == "teacher":
                value = score(predicted(head, seen[train:]), labels[train:])
                if best is None or value > best[0]:
                    best = value, model.name, answer
            else:
                ours.append((model.name, _each(colour, answer.numpy())))
        theirs = [(best[1], _each(colour, best[2].numpy()))] if best else []
        return [("truth", _each(colour, truth)), *theirs, *ours]

    pixels = looked_at.shape[-2], looked_at.shape[-1]
    return {
        "Segmentation": cells(
            torch.from_numpy(np.array(scenes_train.segmentation[:total])).long(),
            np.array(scenes_test.segmentation[chosen]),
            lambda x, y: train_segmentation(x, y, _CLASSES, schedule=_SCHEDULE, device=device),
            lambda head, x: predict_segmentation(head, x, pixels, device),
            lambda answer, truth: mean_iou(confusion(answer, truth, _CLASSES)),
            colour_classes,
        ),
        "Depth": cells(
            torch.from_numpy(np.array(scenes_train.depth[:total])).float(),
            np.array(scenes_test.depth[chosen]),
            lambda x, y: train_depth(x, y, schedule=_SCHEDULE, device=device),
            lambda head, x: predict_depth(head, x, pixels, device),
            lambda answer, truth: -rmse(answer, truth),
            lambda depth: colour_depth(depth, NEAR, FAR),
        ),
    }


def _masks(
    readers: Sequence[ProbedModel],
    teachers: Mapping[str, SpaceOwner],
    pictures: NDArray[np.uint8],
    prompts: Prompts,
    size: int,
    device: torch.device | str,
) -> dict[str, Cells]:
    """The mask of each image's prompt: the truth, the decoder's own teacher, the student; and each
    teacher whose decoder serves its own pixels alone."""
    owner = next((n for n, teacher in teachers.items() if teacher.mask_decoder is not None), None)
    points = [(int(x), int(y)) for x, y in prompts.point]

    def drawn(masks: NDArray) -> NDArray[np.uint8]:
        each = zip(pictures, masks, points, strict=True)
        return np.stack([overlay_mask(picture, mask, point) for picture, mask, point in each])

    cells: Cells = []
    images = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))
    for model in readers:
        itself = teachers.get(model.name) if model.role == "teacher" else None
        if itself is not None and model.name != owner:
            if itself.segment is not None and itself.mask_decoder is None:
                cells.append(
                    (model.name, drawn(segmented_masks(images, itself, prompts, size, device)))
                )
            continue
        if owner is None or owner not in model.to_space:
            continue
        kinds = TOKEN_KINDS if model.joint(owner) else ("dense",)
        given = extract(model.encoder, images, size, device).only(kinds)
        if given.dense is None:
            continue
        dense = apply_space(model.to_space[owner], given, device).dense
        if dense is not None:
            cells.append(
                (model.name, drawn(decoded_masks(dense, teachers[owner], prompts, device)))
            )
    return {"Mask from a point": [("truth", drawn(prompts.mask.numpy())), *cells]} if cells else {}


@torch.no_grad()
def segmented_masks(
    images: NDArray[np.uint8],
    teacher: SpaceOwner,
    prompts: Prompts,
    size: int,
    device: torch.device | str,
) -> NDArray:
    """Masks (N, S, S) bool of one point an image, by a teacher that is shown the images itself."""
    side = prompts.mask.shape[-1]
    points = (prompts.point.float() + 0.5) * (size / side) - 0.5
    pixels = torch.from_numpy(images).to(device).float() / 255
    logits, quality = teacher.segment(pixels, points[:, None].to(device), size)
    return best_masks(logits, quality, side)[:, 0].cpu().numpy()


@torch.no_grad()
def decoded_masks(
    dense: Tensor, teacher: SpaceOwner, prompts: Prompts, device: torch.device | str
) -> NDArray:
    """Masks (N, S, S) bool of one point an image: of the decoder's three, the one it holds best."""
    side = prompts.mask.shape[-1]
    grid = side // teacher.stride
    frame = grid * teacher.stride
    points = (prompts.point.float() + 0.5) * (frame / side) - 0.5
    maps = resize_grid(dense.to(device), (grid, grid))
    logits, quality = teacher.mask_decoder(maps, points[:, None].to(device), frame)
    return best_masks(logits, quality, side)[:, 0].cpu().numpy()


def _each(colour: Callable[[NDArray], NDArray[np.uint8]], maps: NDArray) -> NDArray[np.uint8]:
    return np.stack([colour(one) for one in maps])


def _write(
    groups: Mapping[str, Cells], captions: Sequence[str], notes: list[str], folder: Path
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    columns = [(group, title) for group, cells in groups.items() for title, _ in cells]
    rows = []
    for number, caption in enumerate(captions):
        pictures = [cell[1][number] for cells in groups.values() for cell in cells]
        cells = []
        for place, ((group, title), picture) in enumerate(zip(columns, pictures, strict=True)):
            # Named by place: a model's name may hold anything.
            file = f"scene{number}-{place:02d}.png"
            filtered = Image.Resampling.NEAREST if len(picture) < _SIDE else Image.Resampling.BOX
            shown = Image.fromarray(picture).resize((_SIDE, _SIDE), filtered)
            shown.save(folder / file, optimize=True)
            cells.append({"title": title, "group": group, "file": file})
        rows.append({"caption": caption, "cells": cells})
    kinds = zip(("background", *KINDS), CLASS_COLOURS, strict=True)
    content = {
        "columns": [f"{group}: {title}" for group, title in columns],
        "rows": rows,
        "legends": {
            "Segmentation": [{"name": name, "colour": colour} for name, colour in kinds],
            "Depth": [
                {"name": "near", "colour": NEAR_COLOUR},
                {"name": "far", "colour": FAR_COLOUR},
            ],
        },
        "notes": notes,
    }
    (folder / "pictures.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
