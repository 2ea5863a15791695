"""What a teacher is asked for, and what is known of it before any weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class TeacherSpec:
    """A frozen teacher, by name.

    `family`: one of `teachers.FAMILIES`. `weights`: a hub id ("facebook/dinov2-base"), a local
    folder, or "builtin:dinov2-tiny". `sizes`: image sides in pixels that it may be shown (empty:
    its own). `tokens`: which of "summary" and "dense" it gives. `dtype`: of its weights and
    features; "auto" is bfloat16 on a CUDA device that has it, float32 elsewhere.
    """

    family: str
    weights: str
    sizes: tuple[int, ...] = ()
    tokens: tuple[str, ...] = ("summary", "dense")
    dtype: str = "auto"


@dataclass(frozen=True)
class TeacherInfo:
    """What a checkpoint's configuration files say; no weights are loaded for it.

    `fetched`: whether all files are on this machine. Where even the configuration is not, whatever
    depends on it is None. `source`: folder or hub id. `size`: native image side in pixels.
    `stride`: pixels per dense token. `summary_dim`, `dense_dim`: widths, None where the family has
    no such token. `parameters`: of the vision encoder alone. `mean`, `std`: per channel, for pixels
    in [0, 1]. `licence`: as the model card spells it.
    """

    spec: TeacherSpec
    fetched: bool
    source: str
    size: int | None = None
    stride: int | None = None
    summary_dim: int | None = None
    dense_dim: int | None = None
    parameters: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    licence: str | None = None
