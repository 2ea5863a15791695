"""`distill export STUDENT --format ... --quantize ...`: from the words of a command to files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from distill.formats.kinds import FORMATS, QUANTIZATIONS

MOST_POINTS = 1.0
"""Hundredths of the average gap closed that 8 bits may surely cost without a word."""


def add_format_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `distill export` that have to do with formats."""
    parser.add_argument(
        "--format",
        dest="formats",
        metavar="FORMAT",
        nargs="+",
        default=[],
        help=f"write the student's files of these formats: {', '.join(FORMATS)}",
    )
    parser.add_argument(
        "--quantize",
        metavar="KIND",
        nargs="+",
        default=[],
        help=f"--format: in 8 bits as well: {', '.join(QUANTIZATIONS)}",
    )
    parser.add_argument(
        "--size",
        metavar="PIXELS",
        nargs="+",
        type=int,
        default=[],
        help="--format: of executorch, a file for each (default: the student's own)",
    )
    parser.add_argument(
        "--calibration",
        metavar="FOLDER",
        help="--quantize int8-static: images to look at (default: of the run's data)",
    )
    parser.add_argument(
        "--probe",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="--quantize: probe the files in 8 bits (default: where the run was validated)",
    )


def write_formats(
    student: str | Path,
    formats: Sequence[str],
    quantize: Sequence[str] = (),
    *,
    sizes: Sequence[int] = (),
    calibration: str | None = None,
    probe: bool | None = None,
    quiet: bool = False,
) -> list[Path]:
    """Write a student's files into its folder and print what each is worth.

    Args:
        student: its folder, or that of a run which has one finished student.
        formats, quantize, sizes, calibration, probe: see `export_formats`.
        quiet: print nothing.

    Returns:
        The files.

    Raises:
        UserError: as `find_student` and `export_formats`; if an option has nothing to act on.
    """
    from distill.export.select import find_student
    from distill.formats.write import export_formats
    from students import UserError

    if not formats:
        raise UserError(f"--quantize needs --format: {', '.join(FORMATS)}")
    if calibration is not None and "int8-static" not in quantize:
        raise UserError("--calibration is for --quantize int8-static alone")
    if sizes and "executorch" not in formats:
        raise UserError("--size is for --format executorch: the other formats take any size")
    files = export_formats(
        find_student(student),
        formats,
        quantize,
        sizes=sizes,
        calibration=calibration,
        probe=probe,
        say=(lambda line: None) if quiet else print,
    )
    if not quiet:
        for file in files:
            print(verdict(file))
    return files


def verdict(file: Path) -> str:
    """One line of what an exported file is and how near to the student."""
    from distill.cache.account import shown_bytes
    from distill.formats.about import read_about

    about = read_about(file)
    rows = about["verification"]
    error = max(row[kind]["max_error"] for row in rows for kind in ("summary", "dense"))
    cosine = min(row[kind]["min_cosine"] for row in rows for kind in ("summary", "dense"))
    parts = [f"{file}: {shown_bytes(about['bytes'])}"]
    parts.append(f"largest error {error:.2g}, smallest cosine {cosine:.5f}")
    probes = about.get("probes")
    if probes:
        parts += [
            f"{loss['task']} {loss['metric']} {loss['float_value']:.4g} to {loss['value']:.4g}"
            for loss in probes["losses"]
            if loss["loss"] is not None
        ]
        if probes["gap_closed"] is not None:
            lost, error = (100 * (probes["gap_closed"][key] or 0.0) for key in ("loss", "error"))
            parts.append(f"average gap closed {0.0 - lost:+.1f} ± {error:.1f} points")
            if lost - error > MOST_POINTS:
                parts.append(f"more than {MOST_POINTS:g} lost: look at it before it is used")
    return ", ".join(parts)
