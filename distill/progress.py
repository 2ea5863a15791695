"""Progress on a terminal: bars with the time left, or plain lines where there is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn
from rich.progress import Progress as RichProgress
from rich.progress import Task as RichTask
from rich.table import Column
from rich.text import Text

NOTE_LINES = 5
"""Lines of a note that stand below a bar; further ones are counted."""

_SPEED_OVER = 86_400.0
"""The time left is worked out from the last thousand steps, if they were in this many seconds."""


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
        """Show `text` with the bar: each of its lines below it, cut where the terminal ends. What
        matters most stands first."""
        self.remark = text
        if self.owner.bars is not None and self.bar is not None:
            self.owner.bars.update(self.bar, remark=text)

    def _line(self) -> None:
        seconds = time.perf_counter() - self.began
        left = seconds / max(1, self.done - self.first) * (self.total - self.done)
        said = [f"{self.description}: {self.done}/{self.total}, {seconds:.0f} s, {left:.0f} s left"]
        self.owner.console.print(
            "  ".join([*said, *self.remark.splitlines()]),
            highlight=False,
            markup=False,
            soft_wrap=True,
        )


class Progress:
    """Bars while a `with` block runs; on other ranks than the first, nothing."""

    def __init__(self, shown: bool = True, console: Console | None = None):
        self.shown = shown
        self.console = console or Console()
        if console is None and not self.console.is_terminal:
            self.console = Console(width=160)  # a file or a pipe has no width to keep to
        self.bars: RichProgress | None = None

    @contextmanager
    def task(self, description: str, total: int, done: int = 0) -> Iterator[Task]:
        """A bar that stops with its block."""
        own = self.shown and self.console.is_terminal and self.bars is None
        if own:
            self.bars = _Bars(self.console)
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
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class _Bars(RichProgress):
    """A bar as wide as the terminal, and the lines of its note below it."""

    def __init__(self, console: Console):
        super().__init__(
            _Description(),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            _TimeLeft(table_column=Column(no_wrap=True, min_width=len("0:00:00 left"))),
            console=console,
            expand=True,
            speed_estimate_period=_SPEED_OVER,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            yield self.make_tasks_table([task])
            lines = task.fields["remark"].splitlines()
            shown = lines if len(lines) <= NOTE_LINES else lines[: NOTE_LINES - 1]
            for line in shown:
                yield Text(f"  {line}", no_wrap=True, overflow="ellipsis")
            if len(lines) > len(shown):
                yield Text(f"  and {len(lines) - len(shown)} more, in log.jsonl")


class _Description(ProgressColumn):
    """What gives way where the terminal is narrow: a table shortens columns that may wrap."""

    def render(self, task: RichTask) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class _TimeLeft(ProgressColumn):
    """ "1:02:03 left", "3 days 1:02:03 left"; in the end how long it took."""

    max_refresh = 0.5  # figures that change with every step cannot be read

    def render(self, task: RichTask) -> Text:
        seconds, word = task.time_remaining, "left"
        if task.finished:
            seconds, word = task.finished_time, "in all"
        return Text("-:--:-- left" if seconds is None else f"{_clock(seconds)} {word}")


def _clock(seconds: float) -> str:
    days, rest = divmod(round(seconds), 86_400)
    hours, rest = divmod(rest, 3600)
    text = f"{hours}:{rest // 60:02}:{rest % 60:02}"
    return f"{days} day{'s' if days > 1 else ''} {text}" if days else text
