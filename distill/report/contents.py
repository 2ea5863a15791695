"""What a report is made of: the files of a run folder, read without torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from safetensors import safe_open

from distill.formats.latency_table import Bench, read_bench
from students.errors import UserError

_BUFFERS = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked)$")
"""Tensors in a file of weights that no optimiser trains."""


@dataclass(frozen=True)
class ExportedStudent:
    """An exported student: `name` as `stage/student`, the parameters of its model and of its own
    adapters, and the sizes of model.safetensors and adapters.safetensors in bytes."""

    name: str
    architecture: str
    parameters: int
    adapter_parameters: int
    model_bytes: int
    adapter_bytes: int


@dataclass(frozen=True)
class RunContents:
    """A run as its report sees it; what a run may be without is None or empty.

    `environment` and `pictures` are environment.json and pictures/pictures.json as they are;
    `validation` holds `rows` and `untrained_of`; `logs` has the lines of STAGE/log.jsonl by stage
    and `watched` those of STAGE/validation.jsonl; `comparison` is compare.json; `benches` has
    bench.json of the students that were timed, by `stage/student`.
    """

    path: Path
    name: str
    recipe: str
    environment: dict[str, Any]
    logs: dict[str, list[dict[str, Any]]]
    students: list[ExportedStudent]
    validation: dict[str, Any] | None
    pictures: dict[str, Any] | None
    comparison: dict[str, Any] | None = None
    watched: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    benches: dict[str, Bench] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> RunContents:
        """The run in the folder `path`; stages and students in the recipe's order.

        Raises:
            UserError: if the folder holds no recipe.yaml, or one that is no mapping with stages.
        """
        recipe_file = path / "recipe.yaml"
        if not recipe_file.is_file():
            raise UserError(
                f"{path} is not a run folder (it has no recipe.yaml); give the folder of a run, "
                "such as runs/quickstart"
            )
        text = recipe_file.read_text(encoding="utf-8")
        recipe = OmegaConf.to_container(OmegaConf.create(text))
        stages = recipe.get("stages") if isinstance(recipe, dict) else None
        if not isinstance(recipe, dict) or not isinstance(stages, dict):
            raise UserError(f"{recipe_file} is not the recipe of a run: it has no stages")
        students = [
            student
            for stage, config in stages.items()
            for student in _students(path / str(stage), list((config or {}).get("students") or {}))
        ]
        return cls(
            path=path,
            name=str(recipe.get("name", path.name)),
            recipe=text,
            environment=_json(path / "environment.json") or {},
            logs={str(stage): list(_log(path / str(stage) / "log.jsonl")) for stage in stages},
            students=students,
            validation=_json(path / "validation.json"),
            pictures=_json(path / "pictures" / "pictures.json"),
            comparison=_json(path / "compare.json"),
            watched={
                str(stage): list(_log(path / str(stage) / "validation.jsonl")) for stage in stages
            },
            benches={
                student.name: bench
                for student in students
                if (bench := read_bench(path / student.name)) is not None
            },
        )


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _log(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log, the last of each (student, step) and, of probes, (task, metric), in order
    of steps.

    A run that was stopped and taken up again may have logged steps twice, and may have been
    stopped in the midst of a line.
    """
    if not path.is_file():
        return
    lines: dict[tuple[int, str, str, str], dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        probe = str(line.get("task", "")), str(line.get("metric", ""))
        lines[int(line["step"]), str(line["student"]), *probe] = line
    for key in sorted(lines, key=lambda key: key[0]):
        yield lines[key]


def _students(stage: Path, order: list[str]) -> Iterator[ExportedStudent]:
    """What a stage has exported so far, in the recipe's order; NAME.seedN stands with NAME."""

    def place(name: str) -> int:
        plain = re.sub(r"\.seed\d+$", "", name)
        return order.index(plain) if plain in order else len(order)

    names = sorted(weights.parent.name for weights in stage.glob("*/model.safetensors"))
    for name in sorted(names, key=place):
        folder = stage / name
        weights, adapters = folder / "model.safetensors", folder / "adapters.safetensors"
        config = _json(folder / "config.json") or {}
        yield ExportedStudent(
            name=f"{stage.name}/{name}",
            architecture=str(config.get("architecture", "")),
            parameters=_count(weights, r""),
            adapter_parameters=_count(adapters, r"^student>[^|]*\|adapters\.")
            if adapters.is_file()
            else 0,
            model_bytes=weights.stat().st_size,
            adapter_bytes=adapters.stat().st_size if adapters.is_file() else 0,
        )


def _count(path: Path, pattern: str) -> int:
    """Parameters in a file of weights whose names hold `pattern`, from its header alone."""
    with safe_open(path, framework="numpy") as tensors:
        return sum(
            math.prod(tensors.get_slice(name).get_shape())
            for name in tensors.keys()  # noqa: SIM118 (a safe_open is no mapping)
            if re.search(pattern, name) and not _BUFFERS.search(name)
        )
