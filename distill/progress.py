"""Progress on a terminal: bars with the time left, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress


class Task:
    """One bar: `advance` it, and `note` what its numbers are."""

    def __init__(self, owner: Progress, description: str, total: int, done: int):
        self.owner, self.description, self.total, self.done = owner, description, total, done
        self.remark, self.began, self.first, self.said = "", time.perf_counter(), done, 0
        self.bar = None
        if owner.bars is not None:
            self.bar = owner.bars.add_task(description, total=total, completed=done, remark="")

    def advance(self, by: int = 1) -> None:
        """`by` more of the total are done."""
        self.done += by
        if self.owner.bars is not None and self.bar is not None:
            self.owner.bars.update(self.bar, completed=self.done)
        elif self.owner.shown:
            quarter = 4 * self.done // max(1, self.total)
            if quarter > self.said:
                self.said = quarter
                self._line()

    def note(self, text: str) -> None:
        """Show `text` beside the bar."""
        self.remark = text
        if self.owner.bars is not None and self.bar is not None:
            self.owner.bars.update(self.bar, remark=text)

    def _line(self) -> None:
        seconds = time.perf_counter() - self.began
        left = seconds / max(1, self.done - self.first) * (self.total - self.done)
        self.owner.console.print(
            f"{self.description}: {self.done}/{self.total}, {seconds:.0f} s, "
            f"{left:.0f} s left  {self.remark}",
            highlight=False,
            markup=False,
        )


class Progress:
    """Bars while a `with` block runs; on other ranks than the first, nothing."""

    def __init__(self, shown: bool = True, console: Console | None = None):
        self.shown = shown
        self.console = console or Console()
        if not self.console.is_terminal:  # a file or a pipe has no width to keep to
            self.console = console or Console(width=160)
        self.bars: RichProgress | None = None

    @contextmanager
    def task(self, description: str, total: int, done: int = 0) -> Iterator[Task]:
        """A bar that goes away with its block."""
        own = self.shown and self.console.is_terminal and self.bars is None
        if own:
            self.bars = RichProgress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[remark]}", markup=False),
                console=self.console,
            )
            self.bars.start()
        try:
            yield Task(self, description, total, done)
        finally:
            if own and self.bars is not None:
                self.bars.stop()
                self.bars = None

    def say(self, text: str) -> None:
        """One line to the person."""
        if self.shown:
            self.console.print(text, highlight=False, markup=False)
