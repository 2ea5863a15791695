"""Latency of students in other formats against torch, with random weights, on one thread.

    python benchmarks/formats.py                     ONNX Runtime in float32 and int8, against goals
    python benchmarks/formats.py --table [NAME ...]  architectures, formats and sizes, without goals

One image; torch is eager, in float32. All formats of one architecture and size take turns in one
process; a time is the median over rounds, a ratio the median of each round's.
One JSON object a line: {"name", "value", "unit", "goal", "holds"}.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

# This folder comes first on the path, and a file in it is called as the package `teachers` is.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]

from distill.export import Origin, export_student  # noqa: E402
from distill.export.select import Found  # noqa: E402
from distill.formats import FormatWriter, load_exported  # noqa: E402
from distill.formats.timing import interleaved, ratio  # noqa: E402
from students import Spaces, build_student, load_student  # noqa: E402

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
TABLE_SIZES = (256, 512)
TABLE_FORMATS = (
    ("onnx", None),
    ("onnx", "int8-dynamic"),
    ("executorch", None),
    ("executorch", "int8-dynamic"),
    ("torch-export", None),
)


def exported(name: str, folder: Path, size: int) -> tuple[FormatWriter, Path]:
    """A student with random weights in a folder of its own, and what writes its formats."""
    student = build_student(ARCHS[name], size=size).eval()
    origin = Origin("bench", name, "stage", 1, [size], "apache-2.0")
    export_student(student, Spaces({}), folder / name, origin)
    return FormatWriter(Found(folder / name, None, None), probe=False), folder / name


@torch.no_grad()
def timed(encoders: dict, size: int, seconds: float) -> dict[str, list[float]]:
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
        encoders = {"torch": load_student(home).eval().requires_grad_(False)}
        for arch, form, kind in GOALS:
            if arch == name:
                label = form if kind is None else f"{form} {kind}"
                encoders[label] = load_exported(writer.write(form, kind), threads=1)
        times = timed(encoders, size, seconds=8.0)
        for label in encoders:
            report(f"{name} {size} px: {label}", 1000 * median(times[label]), "ms")
        for arch, form, kind in GOALS:
            if arch == name:
                label = form if kind is None else f"{form} {kind}"
                goal = GOALS[arch, form, kind]
                value = ratio(times, "torch", label)
                report(f"{name} {size} px: {label} over torch", value, "times", goal)


def table(folder: Path, names: list[str]) -> None:
    """Latencies of every format, as JSON lines without a goal."""
    for name in names:
        writer, home = exported(name, folder, TABLE_SIZES[0])
        student = load_student(home).eval().requires_grad_(False)
        shared = {"torch": student}
        for form, kind in TABLE_FORMATS:
            if form != "executorch":
                label = form if kind is None else f"{form} {kind}"
                shared[label] = load_exported(writer.write(form, kind), threads=1)
        for size in TABLE_SIZES:
            encoders = dict(shared)
            for form, kind in TABLE_FORMATS:
                if form == "executorch":
                    label = form if kind is None else f"{form} {kind}"
                    encoders[label] = load_exported(writer.write(form, kind, size), threads=1)
            for label, taken in timed(encoders, size, seconds=4.0).items():
                report(f"{name} {size} px: {label}", 1000 * median(taken), "ms")


def main() -> None:
    torch.set_num_threads(1)
    words = [word for word in sys.argv[1:] if word != "--table"]
    with tempfile.TemporaryDirectory() as folder:
        if "--table" in sys.argv:
            table(Path(folder), words or list(ARCHS))
        else:
            goals(Path(folder))


if __name__ == "__main__":
    main()
