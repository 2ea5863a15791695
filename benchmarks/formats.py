"""Latency of students in other formats against torch, with random weights, on one thread.

    python benchmarks/formats.py                     ONNX Runtime in float32 and int8, against goals
    python benchmarks/formats.py --table [NAME ...]  architectures by format, without goals

--table takes any of vit_t vit_s vit_b convnext_t convnext_s convnext_b (default: all), --sizes in
pixels (default: 256) and --seconds of timing for each format (default: 8). Beside its own figures
it prints those that EUPE (arXiv 2603.22387) published for these architectures on an iPhone 15 Pro,
for orientation, and in the end, on stderr, the rows of the table in docs/performance.md.

One image; torch is eager, in float32 and, where the processor multiplies it, in bfloat16. All
formats of one architecture and size take turns in one process; a time is the median over rounds, a
ratio the median of each round's.
One JSON object a line: {"name", "value", "unit", "goal", "holds"}.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# This folder comes first on the path, and a file in it is called as the package `teachers` is.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]

from distill.engine.precision import has_bfloat16  # noqa: E402
from distill.export import Origin, export_student  # noqa: E402
from distill.export.select import Found  # noqa: E402
from distill.formats import FormatWriter, load_exported  # noqa: E402
from distill.formats.timing import interleaved, ratio  # noqa: E402
from students import Features, Spaces, build_student, load_student  # noqa: E402
from students.encoder import encode  # noqa: E402

ARCHS = {
    "vit_t": "vit_tiny_patch16_dinov3_qkvb",
    "vit_s": "vit_small_patch16_dinov3_qkvb",
    "vit_b": "vit_base_patch16_dinov3_qkvb",
    "convnext_t": "convnext_tiny",
    "convnext_s": "convnext_small",
    "convnext_b": "convnext_base",
}
GOALS = {
    ("vit_s", "onnx", None): 1.8,
    ("convnext_t", "onnx", None): 1.8,
    ("vit_s", "onnx", "int8-dynamic"): 2.5,
    ("convnext_t", "onnx", "int8-dynamic"): 1.4,
}
"""Times as fast as torch in float32."""
SIZES = {"vit_s": 224, "convnext_t": 256}
TABLE_FORMATS = (
    ("onnx", None),
    ("onnx", "int8-dynamic"),
    ("executorch", None),
    ("executorch", "int8-dynamic"),
)
TABLE_COLUMNS = (
    "torch",
    "torch bfloat16",
    "onnx",
    "onnx int8-dynamic",
    "executorch",
    "executorch int8-dynamic",
    "iPhone 15 Pro, published",
)
IPHONE = {
    "vit_t": {256: 6.8, 512: 38.3},
    "vit_s": {256: 17.1, 512: 97.9},
    "vit_b": {256: 55.2, 512: 305.2},
    "convnext_t": {256: 22.4, 512: 82.4},
    "convnext_s": {256: 38.5, 512: 141.9},
    "convnext_b": {256: 59.3, 512: 222.7},
}
"""Published ms of one image on its processor, through ExecuTorch, by size in pixels."""

Encoder = Callable[[torch.Tensor, int], Features]


def exported(name: str, folder: Path, size: int) -> tuple[FormatWriter, Path]:
    """A student with random weights in a folder of its own, and what writes its formats."""
    student = build_student(ARCHS[name], size=size).eval()
    origin = Origin("bench", name, "stage", 1, [size], "apache-2.0")
    export_student(student, Spaces({}), folder / name, origin)
    return FormatWriter(Found(folder / name, None, None), probe=False), folder / name


@torch.no_grad()
def timed(encoders: dict[str, Encoder], size: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of one image of `size` through each, in turns."""
    pixels = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    runs = {label: (lambda e=encoder: e(pixels, size)) for label, encoder in encoders.items()}
    return interleaved(runs, seconds=seconds, least=10, most=100)


def report(name: str, value: float, unit: str, goal: float | None = None) -> None:
    holds = None if goal is None else value >= goal
    line = {"name": name, "value": round(value, 3), "unit": unit, "goal": goal, "holds": holds}
    print(json.dumps(line), flush=True)


def goals(folder: Path) -> None:
    for name, size in SIZES.items():
        writer, home = exported(name, folder, size)
        encoders: dict[str, Encoder] = {"torch": load_student(home).eval().requires_grad_(False)}
        for arch, form, kind in GOALS:
            if arch == name:
                encoders[words(form, kind)] = load_exported(writer.write(form, kind), threads=1)
        times = timed(encoders, size, seconds=8.0)
        for label in encoders:
            report(f"{name} {size} px: {label}", 1000 * median(times[label]), "ms")
        for arch, form, kind in GOALS:
            if arch == name:
                label, goal = words(form, kind), GOALS[arch, form, kind]
                value = ratio(times, "torch", label)
                report(f"{name} {size} px: {label} over torch", value, "times", goal)


def words(form: str, kind: str | None) -> str:
    return form if kind is None else f"{form} {kind}"


def table(names: list[str], sizes: list[int], seconds: float) -> None:
    """Latencies of every format, as JSON lines without a goal, and as rows of Markdown."""
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found = by_size(name, Path(folder), sizes, seconds)
        for size in sizes:
            if size in IPHONE[name]:
                found[size][TABLE_COLUMNS[-1]] = IPHONE[name][size]
            for label, taken in found[size].items():
                report(f"{name} {size} px: {label}", taken, "ms")
        cells = (
            " / ".join(shown(found[size].get(column)) for size in sizes) for column in TABLE_COLUMNS
        )
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    heads = f"| {' / '.join(map(str, sizes))} px, ms | " + " | ".join(TABLE_COLUMNS) + " |"
    print("", heads, "|---" * (1 + len(TABLE_COLUMNS)) + "|", *rows, sep="\n", file=sys.stderr)


def by_size(
    name: str, folder: Path, sizes: list[int], seconds: float
) -> dict[int, dict[str, float]]:
    """Milliseconds of one architecture by size and format."""
    writer, home = exported(name, folder, sizes[0])
    shared: dict[str, Encoder] = {"torch": load_student(home).eval().requires_grad_(False)}
    if has_bfloat16(torch.device("cpu")):
        shared["torch bfloat16"] = in_bfloat16(home)
    found = {}
    for size in sizes:
        encoders = dict(shared)
        for form, kind in TABLE_FORMATS:
            label = words(form, kind)
            if form == "executorch":  # a file for each size
                encoders[label] = load_exported(writer.write(form, kind, size), threads=1)
            elif label not in shared:
                shared[label] = load_exported(writer.write(form, kind), threads=1)
                encoders[label] = shared[label]
        times = timed(encoders, size, seconds)
        found[size] = {label: 1000 * median(taken) for label, taken in times.items()}
    return found


def in_bfloat16(home: Path) -> Encoder:
    """A student whose weights and activations are bfloat16; pixel statistics stay float32."""
    student = load_student(home).eval().requires_grad_(False)
    model, normalise = student.model.bfloat16(), student.normalise
    return lambda pixels, size: encode(model, normalise(pixels).bfloat16())


def shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("names", nargs="*", choices=[[], *ARCHS], metavar="NAME", default=[])
    parser.add_argument("--sizes", nargs="+", type=int, default=[256])
    parser.add_argument("--seconds", type=float, default=8.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.table:
        table(arguments.names or list(ARCHS), arguments.sizes, arguments.seconds)
        return
    with tempfile.TemporaryDirectory() as folder:
        goals(Path(folder))


if __name__ == "__main__":
    main()
