"""What a teacher is asked for, and what is known of it before any weight is loaded."""

from __future__ import annotations

from dataclasses import dataclass

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class TeacherSpec:
    """A frozen teacher, by name.

    `family`: one of `teachers.families()`. `weights`: a hub id ("facebook/dinov2-base"), a local
    folder, "builtin:dinov2-tiny", or a name that the family's library knows. `sizes`: image sides
    in pixels that it may be shown (empty: its own). `tokens`: which of "summary" and "dense" it
    gives. `dtype`: of its weights and features; "auto" is bfloat16 on a CUDA device that has it,
    float32 elsewhere.

    `layer`: dense tokens after this block (1 to the encoder's depth), through the final norm, as
    DINOv2's get_intermediate_layers gives them (None: the last); the summary is always the last
    block's. `micro_batch`: images of one forward pass (None: all at once). `mean` and `std`: pixel
    statistics per channel for a checkpoint that brings none, or to be used instead of its own.
    `trust_remote_code`: run code that the checkpoint brings. `allow_pickle`: read weights from a
    pickle, by torch's weights_only loading, where there are no safetensors.
    """

    family: str
    weights: str
    sizes: tuple[int, ...] = ()
    tokens: tuple[str, ...] = ("summary", "dense")
    dtype: str = "auto"
    layer: int | None = None
    micro_batch: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False


@dataclass(frozen=True)
class FamilyCard:
    """What a family says of itself, in the words of docs/teachers.md's table.

    `models`: the library and its classes. `summary`, `dense`: which tokens they are. `sizes`: what
    other sizes than its own it takes. `beside`: what it has beside features (a text tower, a mask
    decoder, earlier layers). `weights`: what names its checkpoints, beside a local folder.
    """

    models: str
    summary: str
    dense: str
    sizes: str
    beside: str = ""
    weights: str = "hub id"


@dataclass(frozen=True)
class TeacherInfo:
    """What a checkpoint's configuration files say; no weights are loaded for it.

    `fetched`: whether all files are on this machine. Where even the configuration is not, whatever
    depends on it is None, unless a preset has these weights. `source`: folder or hub id. `size`:
    native image side in pixels. `stride`: pixels per dense token. `summary_dim`, `dense_dim`:
    widths, None where the family has no such token. `parameters`: of the vision encoder alone.
    `mean`, `std`: per channel, for pixels in [0, 1]; `statistics_from`: the file or table that they
    were read from. `licence`: as the source of the weights spells it. `layers`: how many blocks
    `spec.layer` may choose from, None where the family offers no earlier layer.
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
    statistics_from: str | None = None
    licence: str | None = None
    layers: int | None = None
