"""Horizontal bars with error bars as inline SVG, on a scale that several charts may share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from distill.report.plots import PALETTE, WIDTH, _number, _text, _ticks

_LEFT, _RIGHT, _ROW, _BAR, _AXIS = 8, 8, 38, 14, 24
_LONGEST = 44
"""Characters of a name that have room beside its figure."""


@dataclass(frozen=True)
class Bar:
    """One bar: a figure `shown` stands beside its name; `value` None draws none.

    `error` is drawn to both sides of the value. `colour` is a place in PALETTE, and goes round.
    `hollow` tells bars of another kind apart.
    """

    name: str
    value: float | None
    error: float | None
    shown: str
    colour: int = 0
    hollow: bool = False


def bar_range(bars: Sequence[Bar]) -> tuple[float, float]:
    """The least range that holds 0 and every bar with its error."""
    ends = [0.0]
    for bar in bars:
        if bar.value is not None:
            error = bar.error or 0.0
            ends += [bar.value - error, bar.value + error]
    low, high = min(ends), max(ends)
    return (low, high) if high > low else (0.0, 1.0)


def bar_chart(bars: Sequence[Bar], *, label: str, extent: tuple[float, float]) -> str:
    """An `<svg>` of the bars, from the top; all text is escaped.

    Args:
        bars: at least one.
        label: what a screen reader says of it.
        extent: the values at the left and the right end, as `bar_range` gives them.
    """
    low, high = extent

    def across(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)

    height = _ROW * len(bars) + _AXIS
    bottom = height - _AXIS
    parts = []
    for tick in _ticks(low, high, 5):
        x = across(tick)
        # Behind the bars only, for a line through the names would be hard to read.
        rows = "".join(f"M{x:.1f} {place * _ROW + 17}v{_BAR + 4}" for place in range(len(bars)))
        strength = "0.6" if tick == 0 else "0.15"
        parts.append(f'<path d="{rows}" stroke="currentColor" stroke-opacity="{strength}"/>')
        anchor = "start" if x < 20 else "end" if x > WIDTH - 20 else "middle"
        parts.append(_text(x, bottom + 16, _number(tick), anchor))
    parts += [_bar(bar, place * _ROW, across) for place, bar in enumerate(bars)]
    return (
        f'<svg class="chart" role="img" viewBox="0 0 {WIDTH} {height}" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _bar(bar: Bar, top: float, across: Callable[[float], float]) -> str:
    name = bar.name if len(bar.name) <= _LONGEST else bar.name[: _LONGEST - 1] + "…"
    parts = [
        f"<title>{escape(f'{bar.name}: {bar.shown}')}</title>",
        _text(_LEFT, top + 14, name, "start"),
        _text(WIDTH - _RIGHT, top + 14, bar.shown, "end"),
    ]
    if bar.value is not None:
        start, end = sorted((across(0.0), across(bar.value)))
        colour, y = PALETTE[bar.colour % len(PALETTE)], top + 19
        fill = "none" if bar.hollow else colour
        parts.append(
            f'<rect x="{start:.1f}" y="{y}" width="{end - start:.1f}" height="{_BAR}" '
            f'fill="{fill}" stroke="{colour}" stroke-width="1.5"/>'
        )
        if bar.error is not None:
            left, right, middle = (
                across(bar.value - bar.error),
                across(bar.value + bar.error),
                y + _BAR / 2,
            )
            parts.append(
                f'<path d="M{left:.1f} {middle}H{right:.1f}M{left:.1f} {middle - 4}v8'
                f'M{right:.1f} {middle - 4}v8" stroke="currentColor" stroke-width="1.5" '
                'fill="none"/>'
            )
    return f"<g>{''.join(parts)}</g>"
