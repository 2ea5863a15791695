"""Account of the images that could not be decoded: which, why, and when there are too many."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate.utils import gather_object

from students.errors import UserError

if TYPE_CHECKING:
    from accelerate import Accelerator

    from distill.data.loader import Batch

FEWEST = 1000
"""The share is never taken of fewer samples: the first few say little about the rest."""

_SHOWN = 3


class BadSamples:
    """Writes each bad sample of a run to a file, once, and stops the run when they are many.

    Of all samples asked for since this was made, at most the share `max_bad` may be bad, where
    fewer than 1000 count as 1000: with 0.01, the eleventh bad sample of the first thousand stops
    the run, in whatever step. So one bad image in the first batch does not matter, and a folder
    that is all bad stops it in the first. A sample that comes again in a later epoch counts again.

    One process of a run makes this, with what all of them met. A run that goes on counts from
    0, and writes no sample again that is in the file.

    Args:
        path: of the file, `RUN/bad_samples.jsonl`: one JSON object a line, with the keys stage,
            step, name and reason. It is made with the first bad sample.
        max_bad: 0 to 1; 0 stops at the first bad sample, 1 never.

    Raises:
        ValueError: if max_bad is not a share.
        UserError: if the file is there and is not what this writes.
    """

    def __init__(self, path: Path, max_bad: float = 0.01):
        if not 0 <= max_bad <= 1:
            raise ValueError(f"max_bad is a share of the samples, 0 to 1, not {max_bad}")
        self.path, self.max_bad = path, max_bad
        self.samples, self.bad = 0, 0
        self._first: list[str] = []
        self._written = _names_in(path)

    def see(self, stage: str, step: int, samples: int, bad: Iterable[tuple[str, str]]) -> None:
        """Counts a step.

        Args:
            stage: the stage's name.
            step: the step's number.
            samples: how many were shown, over all processes.
            bad: (name, reason) of each that was replaced by another, over all processes.

        Raises:
            UserError: if more than the share are bad.
        """
        bad = list(bad)
        self.samples += samples + len(bad)
        self.bad += len(bad)
        new: dict[str, str] = {}
        for name, reason in bad:
            if name not in self._written:
                new.setdefault(name, reason)
        if new:
            lines = [
                json.dumps({"stage": stage, "step": step, "name": name, "reason": reason})
                for name, reason in new.items()
            ]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(line + "\n" for line in lines))
            self._written.update(new)
        self._first += [f"{name} ({reason})" for name, reason in bad][: _SHOWN - len(self._first)]
        if self.bad > self.max_bad * max(self.samples, FEWEST):
            first = ", ".join(self._first) + (", ..." if self.bad > len(self._first) else "")
            raise UserError(
                f"{self.bad} of {self.samples} training images could not be decoded, more than "
                f"the share data.max_bad = {self.max_bad:g} allows: {first}; "
                f"all are in {self.path}: remove or mend them, or raise data.max_bad"
            )


class Account:
    """What the ranks of a run met since they last settled.

    Args:
        held: what it goes to, on the first rank (None: nothing is counted).
        stage: the stage's name.
        accelerator: of the ranks, which all settle at the same steps.
    """

    def __init__(self, held: BadSamples | None, stage: str, accelerator: Accelerator):
        self.held, self.stage, self.accelerator = held, stage, accelerator
        self.samples = 0
        self.bad: list[tuple[str, str]] = []

    def saw(self, batch: Batch) -> None:
        """Take note of a rank's batch."""
        self.samples += len(batch.names)
        self.bad += batch.bad

    def settle(self, step: int) -> None:
        """Hand over what all ranks met up to `step`.

        Raises:
            UserError: on the first rank, if there are too many.
        """
        met = [(self.samples, self.bad)]
        if self.accelerator.num_processes > 1:
            met = gather_object(met)
        if self.held is not None and self.accelerator.is_main_process:
            bad = [one for _, found in met for one in found]
            self.held.see(self.stage, step, sum(count for count, _ in met), bad)
        self.samples, self.bad = 0, []


def _names_in(path: Path) -> set[str]:
    """The names a file holds; a last line that was not written to its end is cut off."""
    if not path.exists():
        return set()
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    try:
        names = {json.loads(line)["name"] for line in whole.splitlines()}
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is not a list of bad samples: move it away, it is written anew"
        ) from None
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return names
