"""Whose features a student has learnt, however many stages back, and under which licences."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distill.engine.learner import StudentPlan
from distill.recipe.schema import Recipe
from teachers import TeacherInfo

Ancestor = dict[str, Any]
"""family, weights and licence (as their source spells it, or None) of a teacher or of initial
weights."""

# Identifiers as the Hub spells them; SPDX's where both have one.
OPEN = {
    "apache-2.0",
    "mit",
    "mit-0",
    "bsd",
    "bsd-2-clause",
    "bsd-3-clause",
    "isc",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-3.0",
    "unlicense",
    "zlib",
}
_NON_COMMERCIAL = re.compile(r"non-?commercial|(^|[-_. ])nc([-_. ]|$)|research-?only")


def lineage(
    recipe: Recipe, plan: StudentPlan, run_dir: Path, info_of: Callable[[str], TeacherInfo]
) -> dict[str, Ancestor]:
    """Everything that a student of a run has learnt from or started from, by name.

    A teacher that is itself a student stands for its own ancestors, and so do initial weights.
    Those of a student from elsewhere are called TEACHER/NAME, or init/NAME.

    Args:
        recipe, plan: the run's recipe, and the student in it.
        run_dir: the run's folder, with the students of earlier stages.
        info_of: what a teacher of the recipe says of itself.
    """
    found: dict[str, Ancestor] = {}
    for name in plan.config.teachers:
        if name not in recipe.teachers:
            found |= ancestors_of(run_dir / name)
            continue
        info = info_of(name)
        own = {"family": info.spec.family, "weights": info.spec.weights, "licence": info.licence}
        found[name] = own
        if info.spec.family == "student":
            found |= _under(name, ancestors_of(Path(info.source)))
    config = plan.config
    if config.init is not None and config.init.partition("/")[0] in recipe.stages:
        found |= ancestors_of(run_dir / config.init)
    elif config.init is not None:
        folder = Path(config.init).expanduser()
        found["init"] = {
            "family": "student",
            "weights": config.init,
            "licence": _own_licence(folder),
        }
        found |= _under("init", ancestors_of(folder))
    if config.pretrained:
        assert config.arch is not None
        found["init"] = _timm_weights(config.arch)
    return found


def ancestors_of(folder: Path) -> dict[str, Ancestor]:
    """What an exported student's adapters.json lists; nothing where it has none."""
    try:
        return dict(json.loads((folder / "adapters.json").read_text(encoding="utf-8"))["teachers"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def standing(licence: str | None) -> str:
    """What a licence's name says: "open" (any use), "non-commercial", "unknown" (none is named),
    or "own terms" (it is somebody's own and has to be read)."""
    if licence is None:
        return "unknown"
    name = licence.strip().lower()
    if name in ("", "unknown"):
        return "unknown"
    if _NON_COMMERCIAL.search(name):
        return "non-commercial"
    return "open" if name in OPEN else "own terms"


def warnings(teachers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each ancestor whose licence is not open, to be read before a student is given
    away."""
    lines = []
    for name, about in teachers.items():
        kind = standing(about["licence"])
        if kind == "open":
            continue
        what = {
            "non-commercial": f"is for non-commercial use ({about['licence']})",
            "unknown": "has no known licence",
            "own terms": f"has terms of its own ({about['licence']})",
        }[kind]
        lines.append(f"{name} ({about['weights']}) {what}; what was learnt from it may be bound")
    return lines


def _under(name: str, ancestors: dict[str, Ancestor]) -> dict[str, Ancestor]:
    return {f"{name}/{other}": about for other, about in ancestors.items()}


def _own_licence(folder: Path) -> str | None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config["pretrained_cfg"].get("license")
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _timm_weights(arch: str) -> Ancestor:
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(arch)
    tag = f"{cfg.architecture}.{cfg.tag}" if cfg and cfg.tag else arch
    return {"family": "timm", "weights": tag, "licence": cfg.license if cfg else None}
