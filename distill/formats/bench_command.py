"""`distill bench MODEL`: what a student costs in each format, and what its teachers cost."""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from distill.export.select import Found
    from distill.formats.bench import Contender
    from distill.probes.models import Encoder

DESCRIPTION = (
    "Time a finished student in torch and in every format, in 8 bits too, beside its teachers "
    "where they are on this machine: latency of one image and of a batch, at several sizes, with "
    "one thread and with all, taken in turns, and the memory of a process of its own. Files that "
    "`distill export --format` has written are timed as they are; others that --formats names "
    "are made for the purpose and thrown away. Writes bench.json."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `distill bench`."""
    parser.add_argument(
        "model",
        metavar="RUN[/STAGE/STUDENT]",
        help="a student's folder, or that of a run which has one finished student",
    )
    parser.add_argument(
        "--sizes", metavar="PIXELS", nargs="+", type=int, default=[], help="default: its stage's"
    )
    parser.add_argument(
        "--batch", metavar="N", nargs="+", type=int, default=[1, 8], help="images at once: 1 8"
    )
    parser.add_argument(
        "--threads", metavar="N", nargs="+", type=int, default=[], help="default: 1 and all"
    )
    parser.add_argument(
        "--formats",
        metavar="FORMAT",
        nargs="+",
        default=[],
        help="torch, onnx, onnx-int8-dynamic, executorch, ...; default: torch, the files that are "
        "there, and what the installed libraries can make",
    )
    parser.add_argument(
        "--seconds", metavar="S", type=float, default=2.0, help="of timing for each, at each size"
    )
    parser.add_argument("--no-memory", action="store_true", help="start no processes for memory")
    parser.add_argument("--no-teachers", action="store_true", help="the student alone")
    parser.add_argument("--out", metavar="FILE", help="default: bench.json in the student's folder")


def bench_command(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `distill bench` does: prints a table, writes bench.json and returns its content.

    Raises:
        UserError: if there is no such student or format, a number is not positive, a size is no
            multiple of the stride, or a library is missing.
    """
    from rich.console import Console

    from distill.export.select import find_student
    from distill.files import write_whole
    from distill.formats.bench import bench
    from distill.formats.labels import TORCH, parse_label
    from students import UserError

    for name in ("sizes", "batch", "threads"):
        wrong = next((n for n in getattr(arguments, name) if n < 1), None)
        if wrong is not None:
            raise UserError(f"--{name} {wrong}: expected whole numbers from 1")
    for label in arguments.formats:
        if label != TORCH:
            parse_label(label)
    found = find_student(arguments.model)
    console = Console()

    def say(line: str) -> None:
        console.print(line, style="dim", highlight=False)

    with _contenders(found, arguments.sizes, arguments.formats, say) as (ours, sizes):
        teachers = [] if arguments.no_teachers else list(_teachers(found, sizes, say))
        content = bench(
            [*ours, *teachers],
            sizes=sizes,
            batches=list(dict.fromkeys(arguments.batch)),
            threads=arguments.threads or None,
            seconds=arguments.seconds,
            memory=not arguments.no_memory,
            say=say,
        )
    out = found.folder / "bench.json" if arguments.out is None else Path(arguments.out)
    write_whole(out, json.dumps(content, indent=1) + "\n")
    for one in tables(content):
        console.print(one)
    console.print(f"results: {out}", highlight=False)
    if found.run is not None and arguments.out is None:
        from distill.report.page import write_report

        console.print(f"report: {write_report(found.run)}", highlight=False)
    return content


@contextlib.contextmanager
def _contenders(
    found: Found, sizes: Sequence[int], wanted: Sequence[str], say: Callable[[str], None]
) -> Iterator[tuple[list[Contender], list[int]]]:
    """The student in its formats, and the sizes; files that were made for it are gone after."""
    from distill.export.origin import read_origin
    from distill.formats.about import exported_files, file_name
    from distill.formats.bench import Contender, of_file
    from distill.formats.kinds import DYNAMIC
    from distill.formats.labels import TORCH, labels, parse_label
    from distill.formats.write import FormatWriter
    from students import UserError, load_student

    model = "/".join(found.folder.resolve().parts[-2:])
    with tempfile.TemporaryDirectory(prefix="distill-bench-") as folder:
        writer = FormatWriter(found, target=Path(folder), probe=False, say=say)
        sizes = sizes or read_origin(found.folder, found.recipe).image_sizes
        sizes = [writer.check_size(size) for size in sizes]
        held = exported_files(found.folder)
        there = {path.relative_to(found.folder).as_posix(): path for path in held}
        picked = []
        for label in dict.fromkeys(wanted or labels()):
            if label == TORCH:
                path, own = found.folder, load_student(found.folder).eval().requires_grad_(False)
                picked.append(Contender(model, TORCH, _always(own), "student", str(path)))
                continue
            form, kind = parse_label(label)
            for size in [writer.student.size] if DYNAMIC[form] else sizes:
                name = f"{form}/{file_name(form, kind, size)}"
                if name in there:
                    picked.append(of_file(model, there[name]))
                    continue
                if kind == "int8-static":
                    # Which images it would be calibrated on is said at export.
                    how = f"`distill export {found.folder} --format {form} --quantize {kind}`"
                    if wanted:
                        raise UserError(f"{found.folder} has no {name}: write it with {how} first")
                    say(f"{label} at {size} px: left out ({how} writes it)")
                    continue
                try:
                    picked.append(of_file(model, writer.write(form, kind, size)))
                except UserError as error:
                    if wanted:
                        raise
                    say(f"{label}: left out ({error})")
        yield picked, list(dict.fromkeys(sizes))


def _teachers(
    found: Found, sizes: Sequence[int], say: Callable[[str], None]
) -> Iterator[Contender]:
    """The teachers of the student's run that are on this machine."""
    from distill.formats.bench import Contender, spec_words
    from distill.formats.labels import TORCH
    from distill.recipe.resolve import teacher_spec
    from students import UserError
    from teachers import describe_teacher, load_teacher, size_error

    for name, config in {} if found.recipe is None else found.recipe.teachers.items():
        try:
            spec = teacher_spec(config)
            info = describe_teacher(spec)
            if not info.fetched:
                say(f"{name}: left out ({spec.weights} is not on this machine)")
                continue
            legal = tuple(size for size in sizes if size_error(info, size) is None)
            if not legal:
                say(f"{name}: left out (it takes none of these sizes)")
                continue
            teacher = load_teacher(spec)
        except UserError as error:
            say(f"{name}: left out ({error})")
            continue
        yield Contender(name, TORCH, _always(teacher), "teacher", spec_words(spec), legal)


def _always(encoder: Encoder) -> Callable[[int], Encoder]:
    """torch's threads are set for the process."""
    return lambda _threads: encoder


def tables(content: dict[str, Any]) -> Iterator[Table]:
    """bench.json for a terminal, a table for each size: a row a model and format, a column a batch
    and a number of threads, and one for memory, the largest of any size."""
    import rich.box
    from rich.table import Table
    from rich.text import Text

    from distill.formats.latency_table import columns, lines

    machine, order, every = content["machine"], columns(content), lines(content)
    memory = any(line.peak_mb is not None for line in every)
    for size in dict.fromkeys(column.size for column in order):
        here = [place for place, column in enumerate(order) if column.size == size]
        out = Table(
            box=rich.box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),  # eighty characters are enough
            title=f"median ms at {size} px, {machine['processor']}, {machine['cores']} cores",
        )
        out.add_column("", no_wrap=True)
        for place in here:
            head = f"batch {order[place].batch}\n{order[place].threads} thr."
            out.add_column(head, justify="right", no_wrap=True)
        if memory:
            out.add_column("peak MB /\nlibraries", justify="right", no_wrap=True)
        model = ""
        for line in every:
            if all(line.ms[place] is None for place in here):
                continue
            # Names may hold brackets, which rich would read as markup.
            if line.model != model:
                out.add_row(Text(line.model, style="bold cyan"))
            model = line.model
            cells = ["-" if line.ms[at] is None else f"{line.ms[at]:.1f}" for at in here]
            if memory:
                held = (line.peak_mb, line.library_mb)
                cells.append(" / ".join("-" if one is None else f"{one:.0f}" for one in held))
            out.add_row(Text("  " + line.form), *cells)
        yield out
