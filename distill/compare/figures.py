"""Figures of a comparison as a reader is shown them."""

from __future__ import annotations

from distill.compare.contributions import LEAVE_ONE_OUT, SHAPLEY

METHODS = {SHAPLEY: "Shapley value", LEAVE_ONE_OUT: "leave one out", "": "none"}
"""The methods of `Contributions`, in words."""


def figure(mean: float, std: float | None, decimals: int) -> str:
    """A mean and its standard deviation, if there is one: "0.83 ±0.01"; never a zero below zero."""
    shown = f"{mean:.{decimals}f}"
    if float(shown) == 0:
        shown = shown.removeprefix("-")
    spread = "" if std is None else f" \N{PLUS-MINUS SIGN}{std:.{decimals}f}"
    return shown.replace("-", "\N{MINUS SIGN}") + spread


def words(name: str) -> str:
    """The name of a task or a metric: "image retrieval"."""
    return name.replace("_", " ")
