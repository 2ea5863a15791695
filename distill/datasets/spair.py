"""Layout `spair:`: SPair-71k (Min et al., arXiv 1908.10543), pairs of pictures with keypoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.datasets.files import Identity, count, few, field, listed, need, read_json
from distill.datasets.layout import Layout, Request
from distill.datasets.parts import Correspondence, EvaluationSet, KeypointPair
from distill.datasets.pictures import Pictures
from students.errors import UserError


def _open(request: Request) -> EvaluationSet:
    folder, identity = request.folder(), Identity(request)
    expected = "PairAnnotation/test/*.json and JPEGImages/CATEGORY/*.jpg"
    for name in ("PairAnnotation/test", "JPEGImages"):
        if not (folder / name).is_dir():
            raise need(request, folder, name, expected)
    found = []
    for entry in listed(folder, (".json",), "PairAnnotation/test/"):
        identity.entry(entry)
        pair = _read_pair(folder / entry.name)
        # Where the two pictures show no keypoint in common there is nothing to find.
        if len(pair[2]):
            found.append(pair)
    if not found:
        raise request.error(
            f"no pair with keypoints in {str(folder / 'PairAnnotation/test')!r}: expected "
            f"{expected}"
        )
    names = sorted({name for pair in found for name in pair[:2]})
    missing = identity.files(folder, names)
    if missing:
        raise request.error(
            f"{count(len(missing), 'image')} of {len(names)} not in {str(folder)!r}: {few(missing)}"
        )
    number = {name: index for index, name in enumerate(names)}
    pairs = tuple(
        KeypointPair(number[source], number[target], points, others, reach, category)
        for source, target, points, others, reach, category in found
    )
    pictures = Pictures(folder, names)
    part = Correspondence(pictures, pairs)
    name, digest = folder.resolve().name, identity.digest()
    return EvaluationSet(name, request.layout, digest, pictures, {"correspondence": part})


def _read_pair(file: Path) -> tuple[str, str, Tensor, Tensor, float, str]:
    """Names of the two pictures, the points in each, the longer side of the target's box, category.

    Raises:
        UserError: a field is missing or wrong.
    """
    record, where = read_json(file), str(file)
    category = field(record, "category", str, where)
    source, target = (
        f"JPEGImages/{category}/{field(record, key, str, where)}"
        for key in ("src_imname", "trg_imname")
    )
    points, others = (_numbers(record, key, 2, where) for key in ("src_kps", "trg_kps"))
    if len(points) != len(others):
        raise UserError(f"{where}: {len(points)} points in src_kps and {len(others)} in trg_kps")
    ((left, top, right, bottom),) = _numbers(
        {"trg_bndbox": [record.get("trg_bndbox")]}, "trg_bndbox", 4, where
    )
    reach = float(max(right - left, bottom - top))
    if reach <= 0:
        raise UserError(f"{where}: trg_bndbox {record['trg_bndbox']} is empty: [x1, y1, x2, y2]")
    return source, target, points, others, reach, category


def _numbers(record: Any, key: str, width: int, where: str) -> Tensor:
    """(K, width) float32 of a list of lists."""
    value = field(record, key, list, where)
    try:
        rows = torch.tensor(value, dtype=torch.float32).reshape(len(value), width)
    except (TypeError, ValueError, RuntimeError):
        rows = torch.tensor([float("nan")])
    if not bool(rows.isfinite().all()):
        raise UserError(f"{where}: {key!r} is not of {width} numbers each: {str(value)[:60]}")
    return rows


LAYOUTS = (Layout("spair", "spair:DIR", (), ("correspondence",), _open),)
