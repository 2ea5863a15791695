"""Progress as it is seen: on terminals of a width, and in a file."""

import re
from io import StringIO

import pytest
from rich.console import Console

from distill.progress import Progress

NOTE = "\n".join(
    ["312 images/s, 4% waiting for data"]
    + [
        f"student_{i} 0.532 (dinov2 0.211, siglip 0.321, sam 0.111, proxy/proxy 0.441, radio 0.2)"
        for i in "abc"
    ]
)


def last_picture(stream):
    """The lines that stand on the terminal when the last block of bars has been drawn."""
    text = re.sub(r"\x1b\[\?25[lh]", "", stream.getvalue())
    frame = re.split(r"(?:\r?\x1b\[(?:1A|2K))+", text)[-1]
    plain = re.sub(r"\x1b\[[0-9;]*m", "", frame)
    return [line for line in plain.splitlines() if line.strip()]


@pytest.mark.parametrize("width", [80, 120])
def test_a_bar_keeps_to_the_terminal(width):
    stream = StringIO()
    console = Console(file=stream, width=width, height=40, force_terminal=True)
    with Progress(console=console).task("a_rather_long_stage: measuring targets", 10**6) as task:
        task.advance(999_000)
        task.note(NOTE)
    lines = last_picture(stream)
    assert len(lines) == 5
    assert all(len(line) <= width for line in lines)
    assert " 999000/1000000 " in lines[0]
    assert lines[0].endswith(" left")
    assert lines[1] == "  312 images/s, 4% waiting for data"
    assert lines[2].startswith("  student_a 0.532 (dinov2 0.211")
    assert lines[2].endswith("…") == (width == 80)


def test_many_lines_are_counted():
    stream = StringIO()
    console = Console(file=stream, width=80, height=40, force_terminal=True)
    with Progress(console=console).task("x", 10) as task:
        task.note("\n".join(f"line {i}" for i in range(9)))
    assert last_picture(stream)[1:] == [
        *(f"  line {i}" for i in range(4)),
        "  and 5 more, in log.jsonl",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "0:00:05 left"), (3725, "1:02:05 left"), (2 * 86_400 + 60, "2 days 0:01:00 left")],
)
def test_time_left(seconds, text):
    clock = [0.0]
    stream = StringIO()
    console = Console(file=stream, width=100, force_terminal=True)
    progress = Progress(console=console)
    with progress.task("x", 100) as task:
        progress.bars.get_time = progress.bars.tasks[0]._get_time = lambda: clock[0]
        for done in range(1, 51):
            clock[0] = done * seconds / 50
            task.advance()
    assert text in "\n".join(last_picture(stream))


def test_without_a_terminal_a_line_for_each_quarter_with_the_whole_note():
    stream = StringIO()
    progress = Progress(console=Console(file=stream, width=20))
    with progress.task("fixed: training", 8) as task:
        for _ in range(8):
            task.note(NOTE)
            task.advance()
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"fixed: training: {done}/8" for done in (2, 4, 6, 8)
    ]
    assert all(line.endswith("  ".join(NOTE.splitlines())) for line in lines)


def test_other_ranks_are_silent():
    stream = StringIO()
    progress = Progress(shown=False, console=Console(file=stream, force_terminal=True))
    with progress.task("x", 1) as task:
        task.note("y")
        task.advance()
    progress.say("z")
    assert stream.getvalue() == ""
