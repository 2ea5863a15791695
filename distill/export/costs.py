"""What an encoder costs: multiply-adds, worked out, and latency, where it was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from students import Student


def without_weights(student: Student) -> Any:
    """A copy of the student's encoder in eval mode on torch's meta device: shapes alone. A student
    that is still in training may be asked for shapes without being run."""
    import timm
    import torch

    with torch.device("meta"):
        return timm.create_model(student.arch, num_classes=0, **student.arguments).eval()


def multiply_adds(student: Student, size: int | None = None) -> int:
    """Multiply-adds of one image at `size` pixels (default: the student's own).

    Those of convolutions and matrix products, attention's among them, as torch's FlopCounterMode
    counts them (it counts two operations for each).
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    side, model = student.size if size is None else size, without_weights(student)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, side, side))
    return counter.get_total_flops() // 2


def measured(folder: Path) -> tuple[list[dict[str, Any]], str]:
    """(the rows of bench.json of a student's folder, the machine that it names); ([], "") without
    one that can be read.

    The file is a list of rows, or a mapping with `rows` and maybe `machine`. Of a row, what is a
    text or a number is taken.
    """
    try:
        content = json.loads((folder / "bench.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [], ""
    about = content if isinstance(content, dict) else {"rows": content}
    rows, machine = about.get("rows"), about.get("machine", "")
    if isinstance(machine, dict):
        machine = ", ".join(f"{key} {value}" for key, value in machine.items())
    plain = [
        {key: value for key, value in row.items() if isinstance(value, str | int | float)}
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict)
    ]
    return [row for row in plain if row], str(machine)
