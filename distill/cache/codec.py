"""Features to bytes and back: as they are, or as fewer bytes of normalised values.

What is lossy is taken of (x - mean) / std per channel, so that a channel of fifty times the
others' magnitude costs the others no digits, and a channel whose mean is large against its std
keeps its own. A row of which a token would come back with a cosine below MIN_COSINE is refused.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from students.features import TOKEN_KINDS, Features

FORMATS = ("exact", "float16", "bfloat16", "int8")
"""How a row is kept: in the teacher's dtype bit by bit, or as normalised values of that kind."""

MIN_COSINE = 0.999
"""Of each token to what comes back, both before and after the statistics are applied."""

GROUP = 128
"""At most so many channels of a token share a scale in int8.

Rounding moves a value by at most half a scale, a scale is the group's largest value over 127, and
so the error's square is at most GROUP / (4 * 127^2) = 0.00198 of the token's: a cosine of at least
0.9990 for any token whatever its outliers.
"""

ALIGNED = 2
"""Parts of a row begin at multiples of so many bytes, so that float16 scales behind int8 values
are read in place; all other parts are whole numbers of their own values anyway."""

_CHUNK = 1 << 23
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class ChannelStatistics:
    """`mean` and `std` (D,) of a teacher's tokens per channel, std above 0, as a fitted normaliser
    `standardise` has them."""

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.mean.shape != self.std.shape:
            raise ValueError(
                f"mean {tuple(self.mean.shape)} and std {tuple(self.std.shape)} must both be (D,)"
            )
        if not (self.mean.isfinite().all() and self.std.isfinite().all() and self.std.min() > 0):
            raise ValueError("mean and std must be finite, and std above 0")


@dataclass(frozen=True)
class RowLayout:
    """What the features of one image are as bytes.

    `summary` and `dense` are token widths, None for a kind that there is not; `grid` is (h, w) of
    the dense tokens; `dtype` is the features' own; `format` one of FORMATS.

    Raises:
        ValueError: if the format or dtype is unknown, or dense tokens have no grid.
    """

    summary: int | None
    dense: int | None
    grid: tuple[int, int] | None
    dtype: str
    format: str = "exact"

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype {self.dtype!r}: expected one of {', '.join(_DTYPES)}")
        if self.format not in FORMATS:
            raise ValueError(f"format {self.format!r}: expected one of {', '.join(FORMATS)}")
        if (self.dense is None) != (self.grid is None):
            raise ValueError(f"dense tokens of width {self.dense} with grid {self.grid}")

    @classmethod
    def of(cls, features: Features, format: str = "exact") -> RowLayout:
        """The layout of these features' rows.

        Raises:
            ValueError: if there are no tokens, or of two dtypes, or of one that cannot be kept.
        """
        summary, dense = features.summary, features.dense
        some = dense if dense is not None else summary
        if some is None:
            raise ValueError("features without tokens")
        if summary is not None and summary.dtype != some.dtype:
            raise ValueError(f"summary in {summary.dtype} beside dense tokens in {some.dtype}")
        return cls(
            None if summary is None else summary.shape[-1],
            None if dense is None else dense.shape[-1],
            None if dense is None else (dense.shape[1], dense.shape[2]),
            str(some.dtype).removeprefix("torch."),
            format,
        )

    @property
    def lossless(self) -> bool:
        """Whether rows come back bit by bit."""
        return self.format in ("exact", self.dtype)

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as torch's."""
        return _DTYPES[self.dtype]

    @cached_property
    def parts(self) -> dict[str, tuple[tuple[int, ...], int]]:
        """By token kind: the shape of its tokens in one row, and where its bytes begin."""
        found: dict[str, tuple[tuple[int, ...], int]] = {}
        begin = 0
        for kind in TOKEN_KINDS:
            width = self.summary if kind == "summary" else self.dense
            if width is not None:
                shape = (width,) if kind == "summary" else (*(self.grid or ()), width)
                found[kind] = shape, begin
                begin += aligned(math.prod(shape) * self._bytes_per_value)
                if self._int8:
                    begin += aligned(2 * math.prod(scales_shape(shape)))
        return found

    @cached_property
    def bytes(self) -> int:
        """Bytes of a row's features."""
        shape, begin = list(self.parts.values())[-1]
        end = begin + aligned(math.prod(shape) * self._bytes_per_value)
        return end + aligned(2 * math.prod(scales_shape(shape))) * self._int8

    @property
    def _int8(self) -> bool:
        return self.format == "int8"

    @property
    def _bytes_per_value(self) -> int:
        return 1 if self._int8 else self.kept_dtype.itemsize

    @property
    def kept_dtype(self) -> torch.dtype:
        """What values are kept as."""
        if self._int8:
            return torch.int8
        return _DTYPES[self.dtype if self.lossless else self.format]


def aligned(size: int) -> int:
    """`size` rounded up to a multiple of ALIGNED."""
    return -(-size // ALIGNED) * ALIGNED


def scales_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(..., D) tokens to (..., G): the shape of their int8 scales."""
    return (*shape[:-1], -(-shape[-1] // GROUP))


class Codec:
    """Features to rows of bytes and back.

    Args:
        layout: of the rows.
        statistics: by token kind; what is lossless needs none.

    Raises:
        ValueError: if a lossy layout comes without the statistics of one of its kinds, or with
            those of another width.
    """

    def __init__(self, layout: RowLayout, statistics: Mapping[str, ChannelStatistics] | None):
        self.layout = layout
        self.statistics: dict[str, ChannelStatistics] = {}
        for kind, (shape, _) in () if layout.lossless else layout.parts.items():
            if statistics is None or kind not in statistics:
                raise ValueError(f"format {layout.format} needs mean and std of {kind} tokens")
            given = statistics[kind]
            if len(given.mean) != shape[-1]:
                raise ValueError(
                    f"{kind} tokens are {shape[-1]} wide, their statistics {len(given.mean)}"
                )
            self.statistics[kind] = ChannelStatistics(
                given.mean.detach().cpu().float(), given.std.detach().cpu().float()
            )

    @cached_property
    def name(self) -> str:
        """A digest of the statistics in 16 hexadecimal digits; "exact" where there are none."""
        if not self.statistics:
            return "exact"
        digest = hashlib.sha256()
        for kind, held in sorted(self.statistics.items()):
            digest.update(kind.encode() + held.mean.numpy().tobytes() + held.std.numpy().tobytes())
        return digest.hexdigest()[:16]

    def encode(self, features: Features) -> tuple[Tensor, Tensor]:
        """Features of n images to rows (n, layout.bytes) uint8 on their device, and which of them
        (n,) bool come back as they should: a row with a number that is not finite, or beyond what
        the format holds, or with a token below MIN_COSINE, is False. Lossless ones are all True.

        Raises:
            ValueError: if the features are not of the layout.
        """
        if RowLayout.of(features, self.layout.format) != self.layout:
            raise ValueError(f"features of another layout than {self.layout}")
        count = next(len(tokens) for tokens in _present(features).values())
        elements = sum(math.prod(shape) for shape, _ in self.layout.parts.values())
        step = max(1, _CHUNK // elements)  # what is normalised takes float32 beside
        parts = [slice(begin, begin + step) for begin in range(0, max(count, 1), step)]
        pieces = [self._encoded(_rows_of(features, part)) for part in parts]
        return torch.cat([rows for rows, _ in pieces]), torch.cat([good for _, good in pieces])

    def decode(self, rows: Tensor) -> Features:
        """Rows (n, at least layout.bytes) uint8, whose last dimension is contiguous and which begin
        at multiples of the bytes of a value, to features in the layout's dtype on their device.
        What is lossless is not copied."""
        held: dict[str, Tensor] = {}
        for kind in self.layout.parts:
            if self.layout.lossless:
                held[kind] = self._values(rows, kind)
            else:
                normalised = self._normalised(rows, kind)
                held[kind] = self._denormalised(normalised, kind).to(self.layout.torch_dtype)
        return Features(held.get("summary"), held.get("dense"))

    def _encoded(self, features: Features) -> tuple[Tensor, Tensor]:
        tokens_of = _present(features)
        some = next(iter(tokens_of.values()))
        rows = torch.zeros(len(some), self.layout.bytes, dtype=torch.uint8, device=some.device)
        good = torch.ones(len(some), dtype=torch.bool, device=some.device)
        for kind, tokens in tokens_of.items():
            if self.layout.lossless:
                self._values(rows, kind).copy_(tokens)
                continue
            mean, std = self._on(tokens.device, kind)
            original = tokens.float()
            normalised = (original - mean) / std
            if self.layout.format == "int8":
                scales = self._scales(rows, kind)
                scales.copy_(_group_scales(normalised))
                steps = _spread(scales.float(), normalised.shape[-1])
                quotients = torch.where(steps > 0, normalised / steps, 0).round_()
                self._values(rows, kind).copy_(quotients.clamp_(-127, 127))
            else:
                self._values(rows, kind).copy_(normalised)
            back = self._normalised(rows, kind)
            # Of what will be given, rounded to the teacher's own dtype.
            given = self._denormalised(back, kind).to(self.layout.torch_dtype).float()
            near = _near(normalised, back) & _near(original, given)
            good &= near.reshape(len(near), -1).all(1)
        return rows, good

    def _values(self, rows: Tensor, kind: str) -> Tensor:
        """The part of rows that is a kind's values: (n, ..., D) in the dtype they are kept in."""
        shape, begin = self.layout.parts[kind]
        dtype = self.layout.kept_dtype
        end = begin + math.prod(shape) * dtype.itemsize
        return rows[:, begin:end].view(dtype).unflatten(1, shape)

    def _scales(self, rows: Tensor, kind: str) -> Tensor:
        shape, begin = self.layout.parts[kind]
        begin += aligned(math.prod(shape))
        shape = scales_shape(shape)
        return rows[:, begin : begin + 2 * math.prod(shape)].view(torch.float16).unflatten(1, shape)

    def _normalised(self, rows: Tensor, kind: str) -> Tensor:
        values = self._values(rows, kind).float()
        if self.layout.format == "int8":
            values *= _spread(self._scales(rows, kind).float(), values.shape[-1])
        return values

    def _denormalised(self, normalised: Tensor, kind: str) -> Tensor:
        mean, std = self._on(normalised.device, kind)
        return torch.addcmul(mean, normalised, std)

    def _on(self, device: torch.device, kind: str) -> tuple[Tensor, Tensor]:
        held = self.statistics[kind]
        return held.mean.to(device), held.std.to(device)


def _present(features: Features) -> dict[str, Tensor]:
    found = {kind: features.get(kind) for kind in TOKEN_KINDS}
    return {kind: tokens for kind, tokens in found.items() if tokens is not None}


def _rows_of(features: Features, part: slice) -> Features:
    return features.map(lambda _, tokens: tokens[part])


def _group_scales(normalised: Tensor) -> Tensor:
    """(..., D) to (..., G): the largest magnitude of each group over 127."""
    groups = -(-normalised.shape[-1] // GROUP)
    size = -(-normalised.shape[-1] // groups)
    padding = groups * size - normalised.shape[-1]
    padded = torch.nn.functional.pad(normalised, (0, padding)) if padding else normalised
    return padded.unflatten(-1, (groups, size)).abs().amax(-1) / 127


def _spread(scales: Tensor, width: int) -> Tensor:
    """(..., G) to (..., D): each channel its group's."""
    groups = scales.shape[-1]
    size = -(-width // groups)
    return scales.unsqueeze(-1).expand(*scales.shape, size).flatten(-2)[..., :width]


def _near(a: Tensor, b: Tensor) -> Tensor:
    """Whether tokens (..., D) have at least MIN_COSINE; False where one is not finite."""
    dot = (a * b).sum(-1)
    return (dot >= MIN_COSINE * a.norm(dim=-1) * b.norm(dim=-1)) & dot.isfinite()
