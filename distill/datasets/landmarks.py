"""Layouts `oxford:` and `paris:`: the revisited Oxford and Paris (arXiv 1803.11285)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.datasets.files import Identity, count, few, field, need, read_json
from distill.datasets.inert_pickle import read_pickle
from distill.datasets.layout import Layout, Request
from distill.datasets.parts import EvaluationSet, Landmarks
from distill.datasets.pictures import Box, CutPictures, Pictures
from students.errors import UserError

_TRUTH = {"oxford": "gnd_roxford5k", "paris": "gnd_rparis6k"}


def _open(request: Request) -> EvaluationSet:
    folder, identity = request.folder(), Identity(request)
    stem = _TRUTH[request.layout]
    files = [folder / f"{stem}{ending}" for ending in (".json", ".pkl")]
    file = next((file for file in files if file.is_file()), None)
    expected = f"{stem}.pkl (or .json) and jpg/*.jpg"
    if file is None:
        raise need(request, folder, f"{stem}.pkl", expected)
    if not (folder / "jpg").is_dir():
        raise need(request, folder, "jpg/", expected)
    identity.files(folder, [file.name])
    truth = read_json(file) if file.suffix == ".json" else read_pickle(file)
    gallery, queries = (_names(truth, key, str(file)) for key in ("imlist", "qimlist"))
    records = field(truth, "gnd", list, str(file))
    if len(records) != len(queries):
        raise UserError(f"{file}: {len(queries)} queries in qimlist and {len(records)} in gnd")
    missing = identity.files(folder, [*gallery, *queries])
    if missing:
        raise request.error(
            f"{count(len(missing), 'image')} of {len(gallery) + len(queries)} not in "
            f"{str(folder)!r}: {few(missing)}"
        )
    boxes = [_box(record, f"{file}: gnd[{n}]") for n, record in enumerate(records)]
    easy, hard, junk = (
        tuple(_numbers(r, key, len(gallery), f"{file}: gnd[{n}]") for n, r in enumerate(records))
        for key in ("easy", "hard", "junk")
    )
    pictures = Pictures(folder, gallery)
    part = Landmarks(CutPictures(Pictures(folder, queries), boxes), pictures, easy, hard, junk)
    name, digest = folder.resolve().name, identity.digest()
    return EvaluationSet(name, request.layout, digest, pictures, {"landmarks": part})


def _names(truth: Any, key: str, where: str) -> list[str]:
    names = field(truth, key, list, where)
    if not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: {key!r} is no list of names")
    return [f"jpg/{name}.jpg" for name in names]


def _box(record: Any, where: str) -> Box:
    value = _flat(field(record, "bbx", (list, np.ndarray), where), where, "bbx")
    if len(value) != 4 or value[0] >= value[2] or value[1] >= value[3]:
        raise UserError(f"{where}: bbx {value.tolist()} is not [x1, y1, x2, y2]")
    left, top, right, bottom = value.tolist()
    return left, top, right, bottom


def _numbers(record: Any, key: str, gallery: int, where: str) -> Tensor:
    """Gallery numbers, int64; an empty array of any type will do."""
    value = _flat(field(record, key, (list, np.ndarray), where), where, key)
    wrong = value[(value != np.floor(value)) | (value < 0) | (value >= gallery)]
    if len(wrong):
        raise UserError(f"{where}: {key} has {wrong[0]:g}, and imlist 0 to {gallery - 1}")
    return torch.from_numpy(value.astype(np.int64))


def _flat(value: Sequence[Any] | np.ndarray, where: str, key: str) -> np.ndarray:
    try:
        flat = np.array(value, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        flat = np.array([np.nan])
    if not np.isfinite(flat).all():
        raise UserError(f"{where}: {key} is no list of numbers: {str(value)[:60]}")
    return flat


LAYOUTS = tuple(Layout(name, f"{name}:DIR", (), ("landmarks",), _open) for name in _TRUTH)
