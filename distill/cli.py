"""The command line: `distill run`, and the other commands that its help lists."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

EXAMPLES = """\
examples:
  distill run quickstart                         a recipe that comes with the package
  distill run mine.yaml                          a recipe of your own, into runs/NAME
  distill run folder data.train.photos.source=folder:/data/images
  distill run mine.yaml stages.fixed.train.steps=100 --run-dir runs/short
  distill check mine.yaml                        every error at once, else what it comes to
  distill check mine.yaml --measure              the largest batch that fits, the time it will take
  distill compare compare-quickstart             which teachers are worth learning from
  distill validate runs/x/multires/vit dinov2-b --data ade20k:/data/ade --tasks segmentation
  distill export runs/x/multires/vit --to vit    a folder that needs nothing of this project
  distill teachers                               whom to learn from: families and presets
  distill teachers dinov2-b                      what one teacher is: widths, sizes, licence

A run goes on where it stopped when the same command is given again. Every value of a recipe can be
overridden by its path, as `distill check` prints it: stages.fixed.train.lr=1e-4
"""

GOES_ON = {
    "run": "; the same command goes on from the last checkpoint",
    "compare": "; the same command goes on from the last checkpoint",
    "validate": "; the same command goes on where it stopped",
}
BAD_INPUT = 2
CLOSED_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0: done; 2: something that the user can put right, one line each on stderr, a disk that is full
    or may not be written among them; 130: Ctrl-C; 143: SIGTERM.
    """
    try:
        arguments = _parse(argv)
    except SystemExit as stop:  # argparse has said what is wrong, or printed the help
        return stop.code if isinstance(stop.code, int) else BAD_INPUT
    try:
        with _terminated_in_order():
            COMMANDS[arguments.command](arguments)
            sys.stdout.flush()
    except KeyboardInterrupt as stop:
        if _first_rank():
            again = GOES_ON.get(arguments.command, "")
            print(f"distill: {str(stop) or 'interrupted'}{again}", file=sys.stderr)
        return 128 + getattr(stop, "signum", signal.SIGINT)
    except BrokenPipeError:  # the reader, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except Exception as error:
        # Not above: `distill --help` waits for no torch.
        from distill.files import refusal
        from students.errors import UserError

        if isinstance(error, OSError) and (reason := refusal(error)):
            where = f"{error.filename}: " if error.filename else ""
            error = UserError(f"{where}{reason}. Make room or set the rights, then try again")
        if not isinstance(error, UserError):
            raise
        _complain(error)
        return BAD_INPUT
    return 0


@contextmanager
def _terminated_in_order() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, but for where a run catches both by itself."""
    from distill.engine.interruption import Interrupted

    def end(signum: int, _: FrameType | None) -> None:
        raise Interrupted(signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    from distill.export import command as export_options
    from distill.formats import bench_command as bench_options
    from distill.formats.command import add_format_arguments

    parser = argparse.ArgumentParser(
        prog="distill",
        description="Distil vision foundation models into one small encoder, by a recipe.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    run = commands.add_parser(
        "run",
        help="train, probe and export what a recipe says; goes on where it stopped",
        description="Train, probe and export what a recipe says. A run that was stopped goes on.",
        allow_abbrev=False,
    )
    check = commands.add_parser(
        "check",
        help="print a recipe as it will be run and what it comes to, or all its errors",
        description="Print the resolved recipe and its plan (parameters, steps, images, memory), "
        "or every error in it. Without --measure it loads no weights and writes nothing.",
        allow_abbrev=False,
    )
    compare = commands.add_parser(
        "compare",
        help="train a student of each subset of a recipe's teachers, and say which are worth it",
        description="Train a student of each subset of the recipe's teachers and seed, all in one "
        "pass of the teachers, probe them, and say what each teacher adds and which disagree. The "
        "recipe's section `compare` says which (default: all subsets, three seeds).",
        allow_abbrev=False,
    )
    cache = commands.add_parser(
        "cache",
        help="fill a recipe's cache of teachers' features ahead, or print what it holds",
        description="Compute the features of a recipe's teachers for every view that its stages "
        "will ask for, and keep them in its cache (section `cache`). Goes on where it stopped.",
        allow_abbrev=False,
    )
    cache.add_argument("--info", action="store_true", help="print what the cache holds")
    validate = commands.add_parser(
        "validate",
        help="measure models on the field's own benchmarks, by their published protocols",
        description="Measure students, proxies, teachers and any other models on data sets in the "
        "layouts in which people have them (docs/datasets.md), by published protocols. Goes on "
        "where it stopped. Instead of models, a plan may be named: recipes/published.yaml.",
        allow_abbrev=False,
    )
    validate.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help="a run's student (runs/NAME/STAGE/STUDENT), a preset, a folder, a hub id, "
        "builtin:NAME or a timm name, each maybe as NAME=MODEL; or a plan and KEY=VALUE for it",
    )
    validate.add_argument(
        "--data", metavar="LAYOUT:PATH", nargs="+", default=[], help="data sets: ade20k:/data/ade"
    )
    validate.add_argument(
        "--tasks", metavar="TASK", nargs="+", default=[], help="default: all that the data allow"
    )
    validate.add_argument(
        "--size", metavar="PIXELS", nargs="+", type=int, default=[], help="default: a model's own"
    )
    validate.add_argument(
        "--dense-size", metavar="PIXELS", nargs="+", type=int, default=[], help="of dense tasks"
    )
    validate.add_argument(
        "--curve", action="store_true", help="dense tasks at 0.5, 1, 1.5 and 2 times the size"
    )
    validate.add_argument(
        "--out", metavar="FOLDER", help="where results go (default: validation/NAME)"
    )
    validate.add_argument("--batch", metavar="N", type=int, default=64, help="images at once")
    validate.add_argument("--workers", metavar="N", type=int, default=2, help="loader processes")
    export = commands.add_parser(
        "export",
        help="a finished student into a folder of its own, or to the Hub",
        description=export_options.DESCRIPTION,
        allow_abbrev=False,
    )
    export_options.add_arguments(export)
    add_format_arguments(export)
    bench = commands.add_parser(
        "bench",
        help="time a student in every format, beside its teachers",
        description=bench_options.DESCRIPTION,
        allow_abbrev=False,
    )
    bench_options.add_arguments(bench)
    for command in (run, check, compare, cache):
        command.add_argument(
            "recipe",
            metavar="RECIPE",
            nargs="?" if command is cache else None,
            help="a YAML file, or the name of a shipped recipe",
        )
        command.add_argument(
            "overrides",
            metavar="KEY=VALUE",
            nargs="*",
            help="values to change, by path: stages.fixed.train.steps=100",
        )
    check.add_argument(
        "--measure",
        action="store_true",
        help="load everything, run a few steps of each stage on this device, and say the largest "
        "batch that fits and the time that a run will take",
    )
    teachers = commands.add_parser(
        "teachers",
        help="print the teachers' families and presets, or what one teacher says of itself",
        description="Print all families and presets; with a name, what that teacher says of "
        "itself: widths, sizes, parameters, pixel statistics, licence. Loads no weights.",
        allow_abbrev=False,
    )
    teachers.add_argument(
        "weights",
        metavar="NAME",
        nargs="?",
        help="a preset, a folder, a hub id, builtin:NAME or a timm name",
    )
    teachers.add_argument(
        "overrides",
        metavar="KEY=VALUE",
        nargs="*",
        help="keys of a recipe's teacher: family=dinov2 sizes=[224]",
    )
    teachers.add_argument(
        "--markdown", action="store_true", help="print the table of families as Markdown"
    )
    run.add_argument("--run-dir", metavar="FOLDER", help="the run's folder (default: runs/NAME)")
    compare.add_argument(
        "--run-dir", metavar="FOLDER", help="the run's folder (default: runs/NAME-compare)"
    )
    arguments, rest = parser.parse_known_args(argv)
    # argparse takes no more positionals after an option: what it left over are overrides.
    unknown = [word for word in rest if word.startswith("-")]
    if unknown:
        commands.choices[arguments.command].error(f"unknown option {unknown[0]}")
    if hasattr(arguments, "overrides"):
        arguments.overrides += rest
    elif rest:
        advice = ": models stand before the options" if arguments.command == "validate" else ""
        commands.choices[arguments.command].error(f"{rest[0]!r} is too much{advice}")
    return arguments


class _Version(argparse.Action):
    """Print the version and stop; asks for it only when it is wanted."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version and stop")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("distill-workbench")
        except PackageNotFoundError:  # a checkout that nobody has installed
            found = "(not installed)"
        print(f"distill {found}")
        parser.exit()


def _run(arguments: argparse.Namespace) -> None:
    from distill.runner import run

    run(arguments.recipe, overrides=arguments.overrides, run_dir=arguments.run_dir)


def _compare(arguments: argparse.Namespace) -> None:
    from distill.compare.command import compare_teachers

    compare_teachers(arguments.recipe, overrides=arguments.overrides, run_dir=arguments.run_dir)


def _cache(arguments: argparse.Namespace) -> None:
    from distill.cache_command import fill_cache, print_cache
    from students.errors import UserError

    if arguments.info:
        print_cache(arguments.recipe, arguments.overrides)
    else:
        if arguments.recipe is None:
            raise UserError("name the recipe whose cache is to be filled, or give --info")
        fill_cache(arguments.recipe, arguments.overrides)


def _check(arguments: argparse.Namespace) -> None:
    began = time.perf_counter()
    from distill.recipe.load import load_recipe
    from distill.recipe.plan import plan
    from distill.recipe.render import print_plan

    found = plan(load_recipe(arguments.recipe, arguments.overrides, everything=True))
    if arguments.measure:
        from distill.measure import measure
        from distill.measure.render import print_measurement
        from distill.progress import Progress

    starting = time.perf_counter() - began
    if _first_rank():
        print_plan(found)
    if arguments.measure:
        progress = Progress(shown=sys.stdout.isatty())
        print_measurement(measure(found.recipe, progress, starting))


def _validate(arguments: argparse.Namespace) -> None:
    from distill.protocols.command import validate_command

    validate_command(
        arguments.models,
        data=arguments.data,
        tasks=arguments.tasks,
        sizes=arguments.size,
        dense_sizes=arguments.dense_size,
        curve=arguments.curve,
        out=arguments.out,
        batch=arguments.batch,
        workers=arguments.workers,
    )


def _export(arguments: argparse.Namespace) -> None:
    from distill.export.command import export_command
    from distill.formats.command import write_formats

    if arguments.formats or arguments.quantize:
        write_formats(
            arguments.student,
            arguments.formats,
            arguments.quantize,
            sizes=arguments.size,
            calibration=arguments.calibration,
            probe=arguments.probe,
        )
    if arguments.to or arguments.push or not arguments.formats:
        export_command(arguments)


def _bench(arguments: argparse.Namespace) -> None:
    from distill.formats.bench_command import bench_command

    bench_command(arguments)


def _teachers(arguments: argparse.Namespace) -> None:
    from distill.teachers_command import markdown, print_teacher, print_teachers

    if arguments.markdown:
        print(markdown())
    elif arguments.weights is None:
        print_teachers()
    else:
        print_teacher(arguments.weights, arguments.overrides)


COMMANDS = {
    "run": _run,
    "check": _check,
    "compare": _compare,
    "cache": _cache,
    "validate": _validate,
    "export": _export,
    "bench": _bench,
    "teachers": _teachers,
}


def _complain(error: Exception) -> None:
    from distill.recipe.build import RecipeError

    # Every rank of torchrun reads the same recipe and finds the same faults.
    if isinstance(error, RecipeError) and not _first_rank():
        return
    for line in str(error).splitlines() or [type(error).__name__]:
        print(f"distill: {line}", file=sys.stderr)


def _first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"
