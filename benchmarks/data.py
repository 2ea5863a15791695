"""What the loader costs beyond decoding and resizing, and what a very long list of files takes.

    python benchmarks/data.py [loader] [list] [photometrics]

Loader: JPEGs of 500x375 made from scikit-image's photographs, cut to random resized crops of 224,
one thread, one process. The loader as a run uses it, torchvision by hand and Pillow by hand take
turns; a ratio is the median over rounds. List: a hundred million paths, written on the spot (4 GB
of disk, some minutes); the memory of the process that opens the list, over what it had before, and
of one that then reads samples, as the kernel's peak of resident memory.
One JSON object a line: {"name", "value", "unit", "goal", "holds"}.
"""

import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

# This file is called as the package is, and its folder comes first on the path.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]

from distill.data.folder import FolderSource  # noqa: E402
from distill.data.loader import batches  # noqa: E402
from distill.data.photometrics import photometrics  # noqa: E402
from distill.data.views import draw_view  # noqa: E402

PHOTOS, SIZE, CANVAS, BATCH, ROUNDS = 64, (500, 375), 224, 64, 30
SCALE = (0.25, 1.0)
PATHS = 100_000_000
MEMORY_GOAL = 200


def report(name, value, unit, goal=None, holds=None) -> None:
    line = {"name": name, "value": round(value, 3), "unit": unit, "goal": goal, "holds": holds}
    print(json.dumps(line), flush=True)


def make_photos(folder: Path) -> list[Path]:
    """JPEGs of quality 90, no two alike."""
    from skimage import data

    originals = [Image.fromarray(picture) for picture in (data.astronaut(), data.coffee(),
                                                          data.chelsea())]  # fmt: skip
    paths = []
    for number in range(PHOTOS):
        original = originals[number % len(originals)]
        margin = number // len(originals)
        box = (margin, margin, original.width, original.height)
        path = folder / f"{number:04}.jpg"
        original.resize(SIZE, Image.Resampling.BICUBIC, box).save(path, quality=90)
        paths.append(path)
    return paths


def by_torchvision(paths: list[Path], boxes: list[tuple[int, int, int, int]]) -> None:
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2.functional import resize

    for path, (x0, y0, x1, y1) in zip(paths, boxes, strict=True):
        image = decode_jpeg(read_file(str(path)), ImageReadMode.RGB)
        resize(image[:, y0:y1, x0:x1], [CANVAS] * 2, InterpolationMode.BICUBIC, antialias=True)


def by_pillow(paths: list[Path], boxes: list[tuple[int, int, int, int]]) -> None:
    for path, box in zip(paths, boxes, strict=True):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        np.asarray(image.resize((CANVAS, CANVAS), Image.Resampling.BICUBIC, box))


def measure_loader() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        paths = make_photos(Path(folder))
        source = FolderSource(folder)
        steps = batches(
            {"photos": (source, 1.0)},
            policy="eupe",
            scale=SCALE,
            view_seed=0,
            canvas=CANVAS,
            batch_size=BATCH,
            first_step=0,
            steps=ROUNDS + 1,
            workers=0,
        )
        runs: dict[str, Callable[[], object]] = {
            "loader": lambda: next(steps),
            "torchvision": lambda: by_torchvision(paths, boxes),
            "pillow": lambda: by_pillow(paths, boxes),
        }
        times: dict[str, list[float]] = {name: [] for name in runs}
        order = list(runs)
        for number in range(ROUNDS + 1):
            # The loader shows each photograph once an epoch: these are its crops.
            boxes = [
                draw_view("eupe", SCALE, 0, number, index, SIZE[::-1]).box
                for index in range(PHOTOS)
            ]
            for name in order:
                began = time.perf_counter()
                runs[name]()
                if number:  # the first round warms up
                    times[name].append(time.perf_counter() - began)
            order = order[1:] + order[:1]
    for name, seconds in times.items():
        report(f"data: {name}, one thread", BATCH / statistics.median(seconds), "images/s")
    for other, goal in (("torchvision", 0.9), ("pillow", 1.6)):
        pairs = zip(times[other], times["loader"], strict=True)
        ratio = statistics.median(theirs / ours for theirs, ours in pairs)
        report(f"data: loader / {other}", ratio, "ratio", goal, ratio >= goal)


def measure_photometrics() -> None:
    torch.set_num_threads(1)
    pixels = torch.rand(BATCH, 3, CANVAS, CANVAS)
    draws = torch.from_numpy(
        np.stack([draw_view("eupe", SCALE, 0, 0, i, SIZE[::-1]).draws for i in range(BATCH)])
    )
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        photometrics(pixels, draws)
        seconds.append(time.perf_counter() - began)
    value = statistics.median(seconds[1:]) / BATCH * 1000
    report("data: photometrics, one thread, on the CPU", value, "ms/image")


def resident(which: str) -> float:
    """Megabytes (10^6 bytes) of this process: `VmRSS` now or `VmHWM` at its highest."""
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(which)
    )
    return int(line.split()[1]) * 1024 / 1e6


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def reader(source: FolderSource, answer) -> None:
    """A loader's process: names of samples all over the list."""
    forget_peak()
    before = resident("VmRSS")
    draw = random.Random(0)
    for _ in range(200_000):
        source.name(draw.randrange(len(source)))
    answer.put(resident("VmHWM") - before)


def opener(path: str, answer) -> None:
    forget_peak()
    before, began = resident("VmRSS"), time.perf_counter()
    source = FolderSource(path)
    answer.put((len(source), time.perf_counter() - began, resident("VmHWM") - before))
    worker = multiprocessing.get_context("fork").Process(target=reader, args=(source, answer))
    worker.start()
    worker.join()


def measure_list(count: int = PATHS) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DISTILL_CACHE"] = folder
        path = Path(folder) / "list.txt"
        with path.open("w") as file:
            for first in range(0, count, 100_000):
                numbers = range(first, min(first + 100_000, count))
                file.writelines(f"{n // 10_000:05}/{n * 7919 % 10_000:04}.jpg\n" for n in numbers)
        context = multiprocessing.get_context("fork")
        answer = context.SimpleQueue()
        process = context.Process(target=opener, args=(str(path), answer))
        process.start()
        length, seconds, opening = answer.get()
        reading = answer.get()
        process.join()
    report("data: paths in the list", length, "paths", count, length == count)
    report("data: opening the list", seconds, "s")
    for name, value in (("opening", opening), ("reading from", reading)):
        holds = value < MEMORY_GOAL
        report(f"data: memory of {name} the list", value, "MB", MEMORY_GOAL, holds)


def main() -> None:
    parts = {"loader": measure_loader, "photometrics": measure_photometrics, "list": measure_list}
    for name in sys.argv[1:] or parts:
        if name not in parts:
            sys.exit(f"unknown part {name!r}: choose from {', '.join(parts)}")
        parts[name]()


if __name__ == "__main__":
    main()
