"""What an encoder costs: multiply-adds, worked out."""

from __future__ import annotations

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
