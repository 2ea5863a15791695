"""What a model may be run as, in one word: torch, onnx, onnx-int8-dynamic, ..."""

from __future__ import annotations

from distill.formats.kinds import FORMATS, QUANTIZATIONS
from students.errors import UserError, did_you_mean

TORCH = "torch"
"""The student itself, in eager mode."""


def label(form: str, quantize: str | None) -> str:
    """The label of a format and a quantization."""
    return form if quantize is None else f"{form}-{quantize}"


def labels() -> list[str]:
    """All of them, torch first."""
    found = [TORCH]
    for form in FORMATS:
        found += [
            form,
            *(label(form, kind) for kind, able in QUANTIZATIONS.items() if form in able),
        ]
    return found


def parse_label(word: str) -> tuple[str, str | None]:
    """(format, quantization) of a label other than torch.

    Raises:
        UserError: if there is no such label.
    """
    if word not in labels():
        raise UserError(f"unknown format {word!r}{did_you_mean(word, labels())}")
    form = next(f for f in FORMATS if word == f or word.startswith(f"{f}-int8"))
    return form, word[len(form) + 1 :] or None
