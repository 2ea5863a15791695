"""What a checkpoint's files say: configuration, preprocessing, shapes of weights, licence."""

from __future__ import annotations

import json
import re
from math import prod
from pathlib import Path
from typing import Any

import torch

from students.errors import UserError
from teachers.checkpoint import PREPROCESSORS, Checkpoint, weight_files
from teachers.spec import TeacherSpec


def read_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The fields of its configuration file.

    Raises:
        UserError: if it is missing or is no JSON object.
    """
    layout = checkpoint.layout
    fields = read_json(checkpoint, layout.config)
    if fields is None:
        raise UserError(
            f"{checkpoint.source}: has no {layout.config}; a teacher of this family is a folder of "
            f"{', '.join((layout.config, layout.weights, *layout.preprocessors[:1]))}"
        )
    return fields


def read_preprocessor(checkpoint: Checkpoint) -> tuple[dict[str, Any], str | None]:
    """The image part of preprocessor_config.json (or of the newer processor_config.json), and the
    file's name; empty and None where the checkpoint has neither."""
    for name in PREPROCESSORS:
        fields = read_json(checkpoint, name)
        if fields is not None and name == "processor_config.json":
            fields = fields.get("image_processor")
        if fields is not None:
            return fields, name
    return {}, None


def pixel_statistics(
    spec: TeacherSpec, checkpoint: Checkpoint, mean: Any, std: Any, source: str | None
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None, str | None]:
    """Mean and std per channel (3 each) for pixels in [0, 1], and where they were read.

    Args:
        spec: its `mean` and `std` go before the checkpoint's.
        checkpoint: for messages, and whether all of it is here.
        mean, std: what the file or table `source` says; `source` is None where there is none.

    Returns:
        None three times where the checkpoint is only partly on this machine.

    Raises:
        UserError: if nobody says them, they are not three numbers each, or a std is not above 0.
    """
    if spec.mean is not None and spec.std is not None:
        return spec.mean, spec.std, "the recipe"
    if source is None and not checkpoint.fetched:
        return None, None, None
    remedy = (
        "give the teacher the statistics that it was trained with, e.g. "
        "mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]"
    )
    if source is None:
        raise UserError(
            f"{checkpoint.source}: has no {PREPROCESSORS[0]}, so its pixel statistics are "
            f"unknown; {remedy}"
        )
    for key, values in (("mean", mean), ("std", std)):
        if not _three_numbers(values) or (key == "std" and min(values) <= 0):
            raise UserError(
                f"{checkpoint.source}: {source} says {key} {values!r} of its pixels; {remedy}"
            )
    return tuple(map(float, mean)), tuple(map(float, std)), source


def crop_side(preprocessor: dict[str, Any]) -> int | None:
    """The side of a square centre crop in pixels, or None where the preprocessor has none."""
    crop = preprocessor.get("crop_size")
    if not preprocessor.get("do_center_crop", True):
        return None
    if isinstance(crop, dict):
        crop = crop.get("height") if crop.get("height") == crop.get("width") else None
    return crop if isinstance(crop, int) else None


def weight_shapes(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the weight files, from their headers alone.

    Raises:
        UserError: if a file is missing from a sharded checkpoint or cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    assert checkpoint.folder is not None
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(checkpoint.folder, checkpoint.layout, checkpoint.pickled):
        if checkpoint.pickled:
            shapes |= _pickled_shapes(checkpoint, path)
            continue
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise UserError(
                f"{checkpoint.source}: {path.name} is missing; fetch the whole model again"
            ) from None
        except SafetensorError as error:
            raise UserError(
                f"{checkpoint.source}: {path.name} cannot be read ({error}); fetch it again"
            ) from None
    return shapes


def count_elements(shapes: dict[str, tuple[int, ...]]) -> int:
    """How many numbers tensors of these shapes hold."""
    return sum(prod(shape) for shape in shapes.values())


def licence(checkpoint: Checkpoint) -> str | None:
    """The licence in the front matter of the model card, or None where none is named; of one that
    the Hub has no word for ("other"), the name that the card gives it."""
    if checkpoint.builtin:
        return "apache-2.0"
    card = checkpoint.folder / "README.md" if checkpoint.folder else None
    if card is None or not card.is_file():
        return None
    front = re.match(
        r"---\s*\n(.*?)\n---", card.read_text(encoding="utf-8", errors="replace"), re.S
    )
    lines = re.findall(
        r"^(license|license_name):\s*['\"]?([^\s'\"#]+)", front[1] if front else "", re.M
    )
    said = dict(lines)
    if said.get("license") == "other":
        return said.get("license_name", "other")
    return said.get("license")


def _pickled_shapes(checkpoint: Checkpoint, path: Path) -> dict[str, tuple[int, ...]]:
    try:
        weights = torch.load(path, map_location="meta", weights_only=True)
        return {name: tuple(tensor.shape) for name, tensor in weights.items()}
    except Exception as error:  # pickle's, zipfile's, torch's: all say that it is no weight file
        raise UserError(
            f"{checkpoint.source}: {path.name} cannot be read as weights alone "
            f"({type(error).__name__}); fetch it again, or take one with safetensors"
        ) from None


def _three_numbers(values: Any) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(isinstance(value, int | float) for value in values)
    )


def read_json(checkpoint: Checkpoint, name: str) -> dict[str, Any] | None:
    """The fields of a JSON file of the checkpoint, None where it has no such file.

    Raises:
        UserError: if it is no JSON object.
    """
    path = (checkpoint.folder or Path()) / name
    if checkpoint.folder is None or not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: is no valid JSON ({error})") from None
    if not isinstance(fields, dict):
        raise UserError(f"{path}: holds no JSON object")
    return fields
