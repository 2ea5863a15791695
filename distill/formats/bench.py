"""Latency and memory of one student in all its formats, and of its teachers, side by side."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

import distill.formats.peak
from distill.formats.about import read_about
from distill.formats.encoder import load_exported
from distill.formats.labels import label
from distill.formats.timing import interleaved
from distill.probes.models import Encoder

Row = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """A model as it is run: `model` and `form` for the table, `load(threads)` for the clock, `kind`
    and `file` for distill.formats.peak. `sizes` are all that it takes, or None for any."""

    model: str
    form: str
    load: Callable[[int], Encoder]
    kind: str
    file: str
    sizes: tuple[int, ...] | None = None


def of_file(model: str, path: Path) -> Contender:
    """An exported file."""
    about = read_about(path)
    sizes = about["sizes"]
    return Contender(
        model,
        label(about["format"], about["quantization"]),
        lambda threads: load_exported(path, threads),
        about["format"],
        str(path),
        tuple(sizes) if isinstance(sizes, list) else None,
    )


def bench(
    contenders: Sequence[Contender],
    *,
    sizes: Sequence[int],
    batches: Sequence[int] = (1, 8),
    threads: Sequence[int] | None = None,
    seconds: float = 2.0,
    memory: bool = True,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """{"machine", "rows"}: for every contender, size, batch and number of threads a row of model,
    format, size, batch, threads, median_ms (of the batch), images_per_s, runs, and with `memory`
    peak_mb (largest resident memory of a process of its own that loads it and runs one batch) and
    library_mb (that after the imports alone), in 10^6 bytes, for the smallest batch and the fewest
    threads; None for others.

    All that can do a size take turns. A contender that does not take a size has no row for it.

    Args:
        contenders: whom.
        sizes: image sides in pixels.
        batches: images at once; ExecuTorch takes them one after the other.
        threads: of computation (default: 1 and all).
        seconds: of measuring for each contender.
        memory: whether processes are started to look at memory.
        say: told in a line what is going on.
    """
    rows: list[Row] = []
    threads = list(dict.fromkeys(threads or (1, os.cpu_count() or 1)))
    for number in threads:
        with _threads(number):
            loaded = [(one, one.load(number)) for one in contenders]
            for size in sizes:
                able = [pair for pair in loaded if pair[0].sizes is None or size in pair[0].sizes]
                for batch in batches:
                    say(f"{size} px, batch {batch}, {number} threads")
                    rows += _measured(able, size, batch, number, seconds)
    if memory:
        for row in rows:
            row |= {"peak_mb": None, "library_mb": None}
            if row["batch"] != min(batches) or row["threads"] != min(threads):
                continue  # a process takes seconds to start
            one = next(c for c in contenders if (c.model, c.form) == _name(row) and _takes(c, row))
            say(f"memory of {one.model} {one.form}, {row['size']} px")
            row |= peak_of(one, row["size"], row["batch"], row["threads"])
    return {"machine": machine(), "rows": rows}


def _name(row: Row) -> tuple[str, str]:
    return row["model"], row["format"]


def _takes(one: Contender, row: Row) -> bool:
    return one.sizes is None or row["size"] in one.sizes


def _measured(
    able: Sequence[tuple[Contender, Encoder]], size: int, batch: int, threads: int, seconds: float
) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(batch, 3, size, size, generator=generator)

    def run(encoder: Encoder) -> Callable[[], object]:
        return lambda: encoder(pixels, size)

    with torch.no_grad():
        times = interleaved(
            {str(i): run(encoder) for i, (_, encoder) in enumerate(able)}, seconds=seconds
        )
    for i, (one, _) in enumerate(able):
        taken = median(times[str(i)])
        yield {
            "model": one.model,
            "format": one.form,
            "size": size,
            "batch": batch,
            "threads": threads,
            "median_ms": round(1000 * taken, 3),
            "images_per_s": round(batch / taken, 2),
            "runs": len(times[str(i)]),
        }


def peak_of(one: Contender, size: int, batch: int, threads: int) -> dict[str, float | None]:
    """`peak_mb` and `library_mb` of a contender in a process of its own; None where it fails."""
    script = str(distill.formats.peak.__file__)
    words = [sys.executable, "-P", script, one.kind, one.file, *map(str, (size, batch, threads))]
    home = str(Path(distill.__file__).resolve().parent.parent)
    paths = os.pathsep.join(p for p in (home, os.environ.get("PYTHONPATH", "")) if p)
    done = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}, check=False
    )
    try:
        found = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):  # a machine without room for it
        return {"peak_mb": None, "library_mb": None}
    return {f"{name}_mb": round(found[name] / 1e6, 1) for name in ("peak", "library")}


def machine() -> dict[str, Any]:
    """What a latency depends on: processor, cores, and the versions of what computes."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in ("torch", "onnxruntime", "executorch", "torchao"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def spec_words(spec: Any) -> str:
    """A TeacherSpec as distill.formats.peak reads it."""
    return json.dumps(asdict(spec))
