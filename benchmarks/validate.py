"""What evaluation costs beside the work that nobody can save: features, kNN, linear probes.

    python benchmarks/validate.py [features] [knn] [linear]

Features: JPEGs of 500x375 made from scikit-image's photographs through the store of features,
written to disk, against the library's bare forward of pixels that are ready: after every batch of
the store's one of these. A ViT-S of 224 pixels with random weights, bfloat16 where the processor
has it. A batch of the store's has its share of all that the process' other threads do; pictures are
read by another process, whose time a picture is a figure of its own. kNN: 2000 queries against
131072 vectors of width 768 and the bare float32 matrix products; its memory is the kernel's peak of
a process that searches for 50000 queries at once: the gallery is read block by block, so that 1.28
million vectors would need no more than the blocks that are read here. Linear: ten learning rates
together against one by itself, 1000 classes, ten epochs; the time of a picture is that of its
features and its share of the steps, which does not depend on how many there are.

What is compared takes turns, on one thread; times are processor seconds, in which is nothing of
what else the machine does, and a ratio is the median over rounds. The C library is told to keep the
memory that it has: what it gives back and takes again costs up to a fifth of a forward pass, more
in one than in the next by chance.
One JSON object a line: {"name", "value", "unit", "goal", "holds"}.
"""

import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F

# This file is called as the package is, and its folder comes first on the path.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]

from distill.data.folder import FolderSource  # noqa: E402
from distill.engine.precision import has_bfloat16  # noqa: E402
from distill.probes.knn import neighbours  # noqa: E402
from distill.protocols.linear import BATCH, EPOCHS, training  # noqa: E402
from distill.protocols.linear_grid import train  # noqa: E402
from distill.protocols.pictures import Shown  # noqa: E402
from distill.protocols.store import FeatureStore  # noqa: E402
from distill.protocols.views import centre_crop  # noqa: E402
from teachers import Teacher, TeacherSpec, load_teacher  # noqa: E402

ARCH, SIZE, PHOTOS, PASS = "vit_small_patch16_dinov3_qkvb", 224, 320, 32
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36)}
KNN_ROUNDS, LINEAR_ROUNDS = 3, 3
QUERIES, GALLERY, WIDTH, NEIGHBOURS = 2000, 131_072, 768, 200
ALL_QUERIES, MEMORY_GOAL = 50_000, 8.0
IMAGENET, CLASSES, FEATURES = 1_281_167, 1000, 384


def report(name, value, unit, goal=None, holds=None) -> None:
    line = {"name": name, "value": round(value, 3), "unit": unit, "goal": goal, "holds": holds}
    print(json.dumps(line), flush=True)


def in_turns(runs: dict, rounds: int) -> dict[str, list[float]]:
    """Seconds of each in each round, of this process' processors; every other round in reverse,
    since what runs after the other finds other caches."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in sorted(runs, reverse=number % 2 == 1):
            began = time.process_time()
            runs[name]()
            times[name].append(time.process_time() - began)
    return times


def ratio(times: dict[str, list[float]], of: str, to: str) -> float:
    pairs = zip(times[of], times[to], strict=True)
    return statistics.median(one / other for one, other in pairs)


def make_photos(folder: Path) -> None:
    """JPEGs of quality 90, no two alike."""
    from PIL import Image
    from skimage import data

    originals = [Image.fromarray(one) for one in (data.astronaut(), data.coffee(), data.chelsea())]
    for number in range(PHOTOS):
        original = originals[number % 3]
        box = (number // 3, number // 3, original.width, original.height)
        picture = original.resize((500, 375), Image.Resampling.BICUBIC, box)
        picture.save(folder / f"{number:04}.jpg", quality=90)


def vit_s(folder: Path) -> Teacher:
    """As the library's users save it."""
    import timm
    from timm.models import save_for_hf

    torch.manual_seed(0)
    dtype = "bfloat16" if has_bfloat16(torch.device("cpu")) else "float32"
    save_for_hf(timm.create_model(ARCH, num_classes=0), folder, safe_serialization=True)
    return load_teacher(TeacherSpec("timm", str(folder), dtype=dtype))


def measure_features() -> None:
    with tempfile.TemporaryDirectory() as given, torch.no_grad():
        folder = Path(given)
        teacher = vit_s(folder / "vit")
        ready = teacher.norm(torch.rand(PASS, 3, SIZE, SIZE)).to(teacher.dtype)
        (folder / "photos").mkdir()
        make_photos(folder / "photos")
        source = FolderSource(str(folder / "photos"))
        teacher.model.forward_features(ready)  # the first pass allocates
        times: dict[str, list[float]] = {"bare": [], "stored": []}
        last = 0.0

        def bare(done: int, _: int) -> None:
            nonlocal last
            now = time.thread_time()
            if done:  # a batch has been stored
                teacher.model.forward_features(ready)
                times["stored"].append(now - last)
                times["bare"].append(time.thread_time() - now)
            last = time.thread_time()

        others = time.process_time() - time.thread_time()
        store = FeatureStore(folder / "features", batch=PASS, workers=1, progress=bare)
        store.features(teacher, "vit", source, "photos", centre_crop(SIZE), "cpu")
        others = time.process_time() - time.thread_time() - others
        times["stored"] = [seconds + others * PASS / PHOTOS for seconds in times["stored"]]

        shown = Shown(source, centre_crop(SIZE))
        began = time.process_time()
        shown[range(PASS)]
        reading = time.process_time() - began
    for name, seconds in times.items():
        report(f"validate: {name}, {ARCH}", PASS / statistics.median(seconds), "images/s")
    report("validate: reading a picture, by another process", 1000 * reading / PASS, "ms")
    speed = ratio(times, "bare", "stored")
    report("validate: features stored / bare forward", speed, "ratio", 0.97, speed >= 0.97)


def unit(count: int, width: int) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(0)), dim=1)


def measure_knn() -> None:
    fresh = multiprocessing.get_context("spawn")  # no memory of what was measured before
    answer = fresh.SimpleQueue()
    process = fresh.Process(target=search_for_all, args=(answer,))
    process.start()
    memory = answer.get()
    process.join()

    gallery, queries, block = unit(GALLERY, WIDTH), unit(QUERIES, WIDTH), 8192

    def products() -> None:
        for start in range(0, GALLERY, block):
            queries @ gallery[start : start + block].T

    products()
    runs = {"bare": products, "kNN": lambda: neighbours(gallery, queries, NEIGHBOURS)}
    times = in_turns(runs, KNN_ROUNDS)
    for name, seconds in times.items():
        rate = 2e-9 * QUERIES * GALLERY * WIDTH / statistics.median(seconds)
        report(f"validate: {name}, {QUERIES} x {GALLERY} x {WIDTH}", rate, "GFLOP/s")
    speed = ratio(times, "bare", "kNN")
    report("validate: kNN / bare matrix products", speed, "ratio", 0.8, speed >= 0.8)
    name = f"validate: memory of kNN, {ALL_QUERIES} x {IMAGENET} x {WIDTH}"
    report(name, memory, "GB", MEMORY_GOAL, memory < MEMORY_GOAL)


class Blocks:
    """A gallery that is nowhere: each block is drawn when it is read, as from a disk."""

    shape = torch.Size((8192 + 1024, WIDTH))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice) -> torch.Tensor:
        return unit(index.stop - index.start, WIDTH)


def search_for_all(answer) -> None:
    """The peak of memory over what there was before, queries included, in GB (10^9 bytes)."""
    torch.set_num_threads(1)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    neighbours(Blocks(), unit(ALL_QUERIES, WIDTH), NEIGHBOURS)
    answer.put(resident("VmHWM") - before)


def resident(which: str) -> float:
    """GB of this process: `VmRSS` now or `VmHWM` at its highest."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(which))
    return int(line.split()[1]) * 1024 / 1e9


def measure_linear() -> None:
    steps, pixels = 3, torch.rand(PASS // 2, 3, SIZE, SIZE)
    features = torch.randn(4 * BATCH, FEATURES, generator=torch.Generator().manual_seed(0))
    labels, rows = torch.arange(len(features)) % CLASSES, torch.arange(len(features))

    def learn(rates: int) -> None:
        whole = training(IMAGENET)
        schedule = replace(whole, rates=whole.rates[-rates:], steps=steps)
        draw = torch.Generator().manual_seed(0)
        train(features, labels, rows, CLASSES, schedule, draw)

    with tempfile.TemporaryDirectory() as folder:
        teacher = vit_s(Path(folder))
        runs = {
            "extraction": lambda: teacher(pixels, SIZE),
            "one rate": lambda: learn(1),
            "ten rates": lambda: learn(10),
        }
        for work in runs.values():
            work()
        times = in_turns(runs, LINEAR_ROUNDS)
    # Milliseconds a picture: a step of BATCH is EPOCHS / BATCH of what a picture takes in all.
    share = {"extraction": 1 / len(pixels)}
    share |= dict.fromkeys(("one rate", "ten rates"), EPOCHS / BATCH / steps)
    each = {name: [1000 * s * share[name] for s in seconds] for name, seconds in times.items()}
    for name, costs in each.items():
        report(f"validate: {name}, a picture", statistics.median(costs), "ms")
    both = zip(each["extraction"], each["one rate"], each["ten rates"], strict=True)
    cost = statistics.median((seen + ten) / (seen + one) for seen, one, ten in both)
    report("validate: ten rates / one rate", cost, "ratio", 1.3, cost <= 1.3)


def main() -> None:
    if any(os.environ.get(name) != value for name, value in KEEP_MEMORY.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | KEEP_MEMORY)
    torch.set_num_threads(1)
    parts = {"features": measure_features, "knn": measure_knn, "linear": measure_linear}
    for name in sys.argv[1:] or parts:
        if name not in parts:
            sys.exit(f"unknown part {name!r}: choose from {', '.join(parts)}")
        parts[name]()


if __name__ == "__main__":
    main()
