"""Colours of a table of gaps closed: the larger the figure the deeper the blue, below 0 orange."""

from __future__ import annotations

from distill.report.colours import rgb

_NONE, _ALL, _BELOW = (rgb(colour) for colour in ("#f7f7f7", "#0072b2", "#d55e00"))
_INKS = ("#000000", "#ffffff")


def heat(value: float) -> tuple[str, str]:
    """Background and ink (#rrggbb) of a gap closed.

    Near white at 0, Okabe and Ito's blue at 1 and above, their vermilion at -1 and below, linear
    in sRGB between: colour-blind readers tell these two apart. The ink is black or white, whichever
    has the more contrast (WCAG 2.2's ratio, at least 4.5).
    """
    end, share = (_ALL, min(value, 1.0)) if value >= 0 else (_BELOW, min(-value, 1.0))
    ground = tuple(round(a + share * (b - a)) for a, b in zip(_NONE, end, strict=True))
    ink = max(_INKS, key=lambda ink: _contrast(ground, rgb(ink)))
    return "#" + "".join(f"{channel:02x}" for channel in ground), ink


def _contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: tuple[int, ...]) -> float:
    """Relative luminance of an sRGB colour (WCAG 2.2)."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (channel / 255 for channel in colour)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
