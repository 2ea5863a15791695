"""What `distill validate` is asked: models, data sets, tasks, sizes; from a file or a command."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distill.recipe.load import find_recipe, load_as
from distill.recipe.schema import TeacherConfig
from students.errors import UserError

CURVE = (0.5, 1.0, 1.5, 2.0)
"""Shares of the image size at which dense tasks are repeated for the curve of resolutions."""

_NAMED = re.compile(r"([A-Za-z0-9][\w.-]*)=(.+)")


@dataclass
class PublishedFigure:
    """A figure from the literature that stands beside the measured one: `source` says where."""

    model: str
    data: str
    task: str
    metric: str
    value: float
    source: str


@dataclass
class ValidationPlan:
    """Models on data sets, by published protocols.

    `models` and `teachers` are written as teachers of a recipe; a run's student is of family
    `student`. `teachers` are never measured: their text towers and mask decoders serve models that
    reach their spaces, beside those that a student's folder names. `data`: data sets by name,
    `LAYOUT:PATH`, null for one that is left out. `tasks`: default all that a data set allows.
    `sizes`: image sizes (default: each model's own), `dense_sizes` those of dense tasks (default:
    the same). `curve`: dense tasks also at 0.5, 1.5 and 2 times that. `published`: figures to
    compare with, by any names.
    """

    models: dict[str, TeacherConfig]
    data: dict[str, str | None]
    name: str = "validation"
    teachers: dict[str, TeacherConfig] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    dense_sizes: list[int] = field(default_factory=list)
    curve: bool = False
    seed: int = field(default=0, metadata={"least": 0})
    batch: int = field(default=64, metadata={"least": 1})
    workers: int = field(default=2, metadata={"least": 0})
    published: dict[str, PublishedFigure] = field(default_factory=dict)


def is_plan(path_or_name: str) -> bool:
    """Whether a recipe's file is a plan for `distill validate`: it has `models` and no `stages`."""
    try:
        text = find_recipe(path_or_name).read_text(encoding="utf-8")
    except (UserError, OSError, UnicodeDecodeError):
        return False
    return bool(re.search(r"^models\s*:", text, re.M)) and not re.search(r"^stages\s*:", text, re.M)


def read_plan(path_or_name: str | Path, overrides: Sequence[str] = ()) -> ValidationPlan:
    """A plan from a YAML file, with overrides `a.b=value`.

    Raises:
        UserError, RecipeError: as `distill.recipe.load.load_recipe`.
    """
    plan: ValidationPlan = load_as(ValidationPlan, path_or_name, overrides)
    plan.data = {name: spec for name, spec in plan.data.items() if spec is not None}
    shown = plan.published.items()
    plan.published = {name: figure for name, figure in shown if figure.data in plan.data}
    return plan


def plan_of(
    models: Sequence[str],
    data: Sequence[str],
    *,
    tasks: Sequence[str] = (),
    sizes: Sequence[int] = (),
    dense_sizes: Sequence[int] = (),
    curve: bool = False,
    batch: int = 64,
    workers: int = 2,
    seed: int = 0,
) -> ValidationPlan:
    """A plan from what stands on a command line; `NAME=` before a model or a data set names it.

    Raises:
        UserError: nothing to measure, or two of one name.
    """
    from distill.teachers_command import chosen_spec

    if not models:
        raise UserError("name at least one model: a run's student, a preset, a hub id, a timm name")
    if not data:
        raise UserError("name at least one data set: --data imagenet:/data/imagenet")
    chosen = {}
    for name, text in _named(models, "models").items():
        weights, *keys = text.split(",")
        spec = chosen_spec(weights, keys)
        chosen[name] = TeacherConfig(
            family=spec.family,
            weights=spec.weights,
            sizes=list(spec.sizes),
            dtype=spec.dtype,
            layer=spec.layer,
            mean=None if spec.mean is None else list(spec.mean),
            std=None if spec.std is None else list(spec.std),
            trust_remote_code=spec.trust_remote_code,
            allow_pickle=spec.allow_pickle,
        )
    return ValidationPlan(
        models=chosen,
        data=dict(_named(data, "--data")),
        tasks=list(tasks),
        sizes=list(sizes),
        dense_sizes=list(dense_sizes),
        curve=curve,
        batch=batch,
        workers=workers,
        seed=seed,
    )


def _named(texts: Sequence[str], what: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        match = _NAMED.fullmatch(text)
        # A key of a layout, or of a teacher, stands behind a colon or a comma.
        own = match is not None and not re.search(r"[:,]", match[1])
        name, value = (match[1], match[2]) if match and own else (text, text)
        if name in found:
            raise UserError(f"{what}: {name!r} is there twice; write NAME={value}")
        found[name] = value
    return found
