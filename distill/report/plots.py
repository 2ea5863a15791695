"""Line charts as inline SVG: no script, no style from elsewhere, legible in light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 240
"""A chart's own units; it is scaled to the room it gets, and near 1:1 in the report."""

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's colours, told apart by colour-blind readers, seen on white and near black."""

_DASHES = ("", "6 4", "2 3", "9 3 2 3")
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 16, 10, 36
_MOST_POINTS, _MOST_DOTS = 300, 40


@dataclass(frozen=True)
class Series:
    """One line: `y` over `x`, of equal length; None and non-finite values leave a gap.

    `colour` is a place in PALETTE and `dash` one in four dash patterns; both go round.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    colour: int = 0
    dash: int = 0


def line_chart(
    series: Sequence[Series],
    *,
    label: str,
    x_label: str = "step",
    log: bool = False,
    y_range: tuple[float | None, float | None] = (None, None),
    dots: bool = False,
) -> str:
    """An `<svg>` of the series, with axes and ticks; the legend is `legend(series)`.

    `label` is what a screen reader says of it. `log` gives a logarithmic y axis, on which values
    that are not positive are gaps. `y_range` fixes either end of the y axis; what lies outside is
    drawn on its edge. A series of more than 300 points is drawn as the means of 300 equal bins.
    `dots` marks each point of a series of at most 40.

    Raises:
        ValueError: if a series has as many x as it has not y.
    """
    lines = [_thin(_points(one, log)) for one in series]
    seen = [point for line in lines for point in line if point is not None]
    if not seen:
        return _svg(label, [_text(WIDTH / 2, HEIGHT / 2, "nothing was logged", "middle")])

    def scale(y: float) -> float:
        return math.log10(y) if log else y

    left, right = _spread(min(x for x, _ in seen), max(x for x, _ in seen), 0.0)
    low, high = _spread(min(scale(y) for _, y in seen), max(scale(y) for _, y in seen), 0.04)
    low = low if y_range[0] is None else scale(y_range[0])
    high = high if y_range[1] is None else scale(y_range[1])
    if high <= low:
        low, high = _spread(low, low, 0.0)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - left) / (right - left)
        up = (min(max(scale(y), low), high) - low) / (high - low)
        return (
            _LEFT + across * (WIDTH - _LEFT - _RIGHT),
            HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM),
        )

    parts = []
    for value in _log_ticks(low, high) if log else _ticks(low, high, 5):
        _, y = place(left, value)
        parts.append(
            f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" '
            'stroke="currentColor" stroke-opacity="0.15"/>'
        )
        parts.append(_text(_LEFT - 6, y + 4, _number(value), "end"))
    bottom = HEIGHT - _BOTTOM
    for value in _ticks(left, right, 5):
        x, _ = place(value, 10**low if log else low)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}" '
            'stroke="currentColor" stroke-opacity="0.6"/>'
        )
        parts.append(_text(x, bottom + 16, _number(value), "middle"))
    parts.append(
        f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{bottom}" y2="{bottom}" '
        'stroke="currentColor" stroke-opacity="0.6"/>'
    )
    parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 4, x_label, "middle"))
    for one, line in zip(series, lines, strict=True):
        parts.append(_path(one, line, place))
        if dots and len(line) <= _MOST_DOTS:
            parts += _dots(one, line, place)
    return _svg(label, parts)


def legend(series: Sequence[Series]) -> str:
    """A `<ul class="legend">` with a stroke and a name for each series; names are escaped."""
    items = []
    for one in series:
        stroke = (
            '<svg class="key" viewBox="0 0 26 10" width="26" height="10" aria-hidden="true">'
            f'<line x1="1" x2="25" y1="5" y2="5" {_stroke(one)}/></svg>'
        )
        items.append(f"<li>{stroke}{escape(one.name)}</li>")
    return f'<ul class="legend">{"".join(items)}</ul>'


def _points(one: Series, log: bool) -> list[tuple[float, float] | None]:
    """The points of a series in the order given, None where the line breaks."""
    out: list[tuple[float, float] | None] = []
    for x, y in zip(one.x, one.y, strict=True):
        good = y is not None and math.isfinite(y) and math.isfinite(x) and (y > 0 or not log)
        out.append((float(x), float(y)) if good and y is not None else None)
    return out


def _thin(line: list[tuple[float, float] | None]) -> list[tuple[float, float] | None]:
    """At most _MOST_POINTS points: the mean of each bin, None for a bin with nothing in it."""
    if len(line) <= _MOST_POINTS:
        return line
    out: list[tuple[float, float] | None] = []
    for i in range(_MOST_POINTS):
        part = line[i * len(line) // _MOST_POINTS : (i + 1) * len(line) // _MOST_POINTS]
        here = [point for point in part if point is not None]
        if here:
            n = len(here)
            out.append((sum(x for x, _ in here) / n, sum(y for _, y in here) / n))
        else:
            out.append(None)
    return out


def _path(
    one: Series,
    line: list[tuple[float, float] | None],
    place: Callable[[float, float], tuple[float, float]],
) -> str:
    """The line as one path, moved over its gaps; a point with gaps on both sides is a dot."""
    moves, pen_down = [], False
    for before, point, after in zip([None, *line[:-1]], line, [*line[1:], None], strict=True):
        if point is None:
            pen_down = False
            continue
        x, y = place(*point)
        moves.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
        if before is None and after is None:
            moves.append("h0.01")  # with round caps, a stroke of no length is a dot
        pen_down = True
    return f'<path d="{"".join(moves)}" fill="none" {_stroke(one)}/>'


def _dots(
    one: Series,
    line: list[tuple[float, float] | None],
    place: Callable[[float, float], tuple[float, float]],
) -> list[str]:
    """A dot at each point: of a few, far apart, the line alone does not say where they are."""
    colour = PALETTE[one.colour % len(PALETTE)]
    places = [place(*point) for point in line if point is not None]
    return [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>' for x, y in places]


def _stroke(one: Series) -> str:
    dash = _DASHES[one.dash % len(_DASHES)]
    return (
        f'stroke="{PALETTE[one.colour % len(PALETTE)]}" stroke-width="1.8" '
        'stroke-linecap="round" stroke-linejoin="round"'
        + (f' stroke-dasharray="{dash}"' if dash else "")
    )


def _spread(low: float, high: float, margin: float) -> tuple[float, float]:
    """The range with a margin (a share of it) on both sides, never of no length."""
    if high <= low:
        half = abs(low) * 0.05 or 0.5
        return low - half, low + half
    room = (high - low) * margin
    return low - room, high + room


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within the range, about so many."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten within the range of exponents, with 2 and 5 between where they are few."""
    exponents = range(math.floor(low), math.ceil(high) + 1)
    for factors in ((1,), (1, 2, 5)):
        ticks = [m * 10.0**e for e in exponents for m in factors]
        ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
        if len(ticks) >= 3:
            every = math.ceil(len(ticks) / 6)
            return ticks[::every]
    return _ticks(10**low, 10**high, 7)


def _number(value: float) -> str:
    """A tick's text: 0.25, 20k, 1.5M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="12" '
        f'fill="currentColor" fill-opacity="0.8">{escape(text)}</text>'
    )


def _svg(label: str, parts: list[str]) -> str:
    return (
        f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
