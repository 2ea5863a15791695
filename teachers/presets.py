"""Presets: short names of published checkpoints, with what is known of each without its files.

`presets.json` is the table. A preset's licence and widths were read where its `read` says, not
guessed; what could not be read is null.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from students.errors import UserError
from teachers.spec import TeacherInfo, TeacherSpec

TABLE = Path(__file__).parent / "presets.json"
# What a checkpoint's files say when they are here, and a preset where they are not.
FACTS = ("size", "stride", "summary_dim", "dense_dim", "parameters", "layers", "licence")


@dataclass(frozen=True)
class Preset:
    """A published checkpoint: `family` and `weights` as a TeacherSpec takes them, and what its
    TeacherInfo will say (`size`, `stride` in pixels; widths, None where it has no such token;
    `parameters` of the vision encoder; `layers`; `licence`). `read`: where that was read."""

    name: str
    family: str
    weights: str
    read: str
    size: int
    stride: int
    summary_dim: int | None
    dense_dim: int | None
    parameters: int | None = None
    layers: int | None = None
    licence: str | None = None


@cache
def all_presets() -> dict[str, Preset]:
    """Every preset by name, in the order of the table: by family, small to large."""
    rows = json.loads(TABLE.read_text(encoding="utf-8"))
    return {name: Preset(name, **row) for name, row in rows.items()}


def preset(name: str, **changes: Any) -> TeacherSpec:
    """The teacher of this short name: `preset("dinov2-b", sizes=(224,))`.

    `changes` are fields of TeacherSpec.

    Raises:
        UserError: if there is no such preset; the message has the nearest name.
    """
    known = all_presets()
    if name not in known:
        raise UserError(no_preset(name))
    return TeacherSpec(family=known[name].family, weights=known[name].weights, **changes)


def no_preset(name: str) -> str:
    """That `name` is no preset, and which is the nearest, in a few words of one line."""
    near = difflib.get_close_matches(name, all_presets(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`distill teachers` lists them"
    return f"{name!r} is no preset ({hint})"


def with_known_facts(info: TeacherInfo) -> TeacherInfo:
    """`info` with what its files did not say, if its weights are those of a preset."""
    spec = info.spec
    for known in all_presets().values():
        if (known.family, known.weights) == (spec.family, spec.weights):
            unknown = [fact for fact in FACTS if getattr(info, fact) is None]
            return replace(info, **{fact: getattr(known, fact) for fact in unknown})
    return info
