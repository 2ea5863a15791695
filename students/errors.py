"""Errors that are the user's to mend: one clear line, no traceback, exit status 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something in a recipe, a file or a command that the user can put right.

    The message is one line: what is wrong, with its value, and what to do.
    """


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" for the nearest of `choices`, else " (known: a, b, c)"."""
    known = sorted(choices)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if near:
        return f" (did you mean {near[0]!r}?)"
    if not known:
        return ""
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f" (known: {shown})"
