"""The cache of teachers' features: what reading costs, its bytes, what int8 keeps, its memory.

    python benchmarks/cache.py

One thread. A ViT-B of random weights in bfloat16 shown 8 scenes of 224 pixels, one channel of its
final norm 50 times the others: computing their features against reading the same rows from the
cache, in turn, each format in a store of its own; the system's page cache is warm. Then
builtin:dinov2-tiny on scenes of 64 pixels. The cosines are of each token to what comes back, before
and after standardising with mean and std per channel. The index is that of a store of ten million
rows, opened from its files.
One JSON object a line: {"name", "value", "unit", "goal", "holds"}.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

# This folder comes first on the path, and a file in it is called as the package `teachers` is.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]

from distill.cache import (  # noqa: E402
    FORMATS,
    ChannelStatistics,
    FeatureCache,
    RowLayout,
    StoreKey,
    teacher_identity,
    views_identity,
)
from distill.cache.catalogue import Catalogue, RowKeys, source_digest  # noqa: E402
from distill.cache.shard import RECORD, record_checks, rows_of_shard  # noqa: E402
from distill.scenes.dataset import Scenes  # noqa: E402
from students.moments import Moments  # noqa: E402
from teachers import TeacherSpec, load_teacher  # noqa: E402

BATCH, ROUNDS, CALIBRATION = 8, 7, 32
FASTER, COSINE = 5.0, 0.999
ROWS, MEMORY = 10_000_000, 300.0
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def report(name: str, value: float, unit: str, goal: float | None = None, least: bool = True):
    holds = None if goal is None else (value >= goal if least else value <= goal)
    line = {"name": name, "value": round(value, 6), "unit": unit, "goal": goal, "holds": holds}
    print(json.dumps(line), flush=True)


def scenes(count: int, size: int, seed: int) -> torch.Tensor:
    """(count, 3, size, size) float in [0, 1]."""
    images = torch.from_numpy(np.array(Scenes(count, size, seed).images))
    return images.float() / 255


def vit_b(folder: Path):
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    base = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
    model = Dinov2Model(Dinov2Config(**base, patch_size=16, image_size=224))
    with torch.no_grad():
        model.layernorm.weight[100] = 50
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(HALF))
    return load_teacher(TeacherSpec("dinov2", str(folder), dtype="bfloat16"))


def measured(teacher, pixels: torch.Tensor, size: int) -> dict[str, ChannelStatistics]:
    """Mean and std per channel, as a stage's calibration finds them."""
    moments: dict[str, Moments] = {}
    for part in pixels.split(BATCH):
        features = teacher(part, size)
        for kind in teacher.spec.tokens:
            tokens = features.get(kind)
            moments.setdefault(kind, Moments(tokens.shape[-1])).update(tokens)
    return {
        kind: ChannelStatistics(held.mean.float(), held.std.float().clamp_min(1e-6))
        for kind, held in moments.items()
    }


def cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=-1).flatten()


def compare(name: str, teacher, size: int, folder: Path, timed: bool) -> None:
    """Report what a teacher's features cost to read, in bytes, and how near int8 comes."""
    pixels = scenes(BATCH, size, seed=3)
    of_channels = measured(teacher, scenes(CALIBRATION, size, seed=4), size)
    key = StoreKey(
        teacher_identity(teacher), size, views_identity("centre", [1.0, 1.0], 0, size), name
    )
    rows = np.stack([np.zeros(BATCH), np.arange(BATCH), np.zeros(BATCH)], 1).astype(np.int64)
    truth = teacher(pixels, size)
    own = str(teacher.dtype).removeprefix("torch.")
    stores = {}
    for form in FORMATS:
        if form != own:
            cache = FeatureCache(folder, format=form)
            stores[form] = cache.store(key, ["scenes"], of_channels)
            report(f"{name}: rows kept as {form}", stores[form].put(rows, truth), "of 8", BATCH)
            cache.close()
    if timed:
        runs = {form: lambda store=store: store.get(rows) for form, store in stores.items()}
        runs["compute"] = lambda: teacher(pixels, size)
        times: dict[str, list[float]] = {each: [] for each in runs}
        for turn in range(ROUNDS + 1):
            for each in sorted(runs, reverse=turn % 2 == 1):
                began = time.perf_counter()
                runs[each]()
                if turn:  # the first pass allocates
                    times[each].append(time.perf_counter() - began)
        computed = times.pop("compute")
        report(f"{name}: computing, {own}", BATCH / statistics.median(computed), "images/s")
        for form, taken in times.items():
            ratio = statistics.median(c / t for c, t in zip(computed, taken, strict=True))
            report(f"{name}: reading {form}", BATCH / statistics.median(taken), "images/s")
            report(f"{name}: reading {form} / computing, warm", ratio, "ratio", FASTER)
    grid, widths = truth.dense.shape[1:3], (truth.summary.shape[-1], truth.dense.shape[-1])
    layouts = {form: RowLayout(*widths, tuple(grid), own, form) for form in ("int8", "float16")}
    plain = 2 * (widths[0] + grid[0] * grid[1] * widths[1])
    report(f"{name}: bytes of int8", layouts["int8"].bytes, "bytes a row")
    report(
        f"{name}: bytes of int8 / of float16",
        layouts["int8"].bytes / plain,
        "ratio",
        max(0.51, 0.5 + 1 / widths[1]),  # a scale is two bytes, and each token has one at least
        least=False,
    )
    found, mask = stores["int8"].get(rows)
    for kind in teacher.spec.tokens:
        held, given, got = of_channels[kind], truth.get(kind)[mask], found.get(kind)
        spread = held.std.max() / held.std.median()
        report(f"{name}: {kind}, largest std of a channel / median", float(spread), "ratio")
        after = [(tokens.double() - held.mean) / held.std for tokens in (given, got)]
        for when, pair in {"before": (given, got), "after": after}.items():
            near = cosines(*pair)
            report(f"{name}: int8 {kind} cosine {when}, mean", float(near.mean()), "cosine")
            report(f"{name}: int8 {kind} cosine {when}, minimum", float(near.min()), "", COSINE)


def megabytes(field: str) -> float:
    """A line of this process's account of its memory, in 10^6 bytes."""
    (line,) = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(f"{field}:")
    ]
    return int(line.split()[1]) * 1024 / 1e6


def index_memory(folder: Path) -> None:
    """Report what the index of ten million rows takes, and how long opening it does."""
    layout = RowLayout(384, None, None, "bfloat16")
    keys = RowKeys(["scenes"])
    capacity = rows_of_shard(layout.bytes)
    order = np.random.default_rng(0).permutation(ROWS)
    for number, begin in enumerate(range(0, ROWS, capacity)):
        part = order[begin : begin + capacity]
        records = np.zeros(len(part), dtype=RECORD)
        records["source"], records["index"] = source_digest("scenes"), part
        records["slot"] = np.arange(len(part))
        records["check"] = record_checks(records)
        (folder / f"{number:016x}.exact.index").write_bytes(records.tobytes())
        with (folder / f"{number:016x}.exact.rows").open("wb") as file:
            file.truncate(len(part) * (layout.bytes + RECORD.itemsize))  # takes no room
    del order, records
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    before, began = megabytes("VmRSS"), time.perf_counter()
    catalogue = Catalogue(folder, layout, keys, print)
    catalogue.refresh()
    report("index of 10 million rows: opening", time.perf_counter() - began, "s")
    held, peak = megabytes("VmRSS") - before, megabytes("VmHWM") - before
    report("index of 10 million rows: resident memory", held, "MB", MEMORY, least=False)
    report("index of 10 million rows: at most while opening", peak, "MB", MEMORY, least=False)
    asked = np.random.default_rng(1).integers(0, ROWS, (200, 256))
    rows = np.zeros((256, 3), dtype=np.int64)
    began = time.perf_counter()
    for some in asked:
        rows[:, 1] = some
        catalogue.index.find(keys.keys(rows))
    report("index of 10 million rows: 256 look-ups", (time.perf_counter() - began) * 5, "ms")


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("index", "vit_b", "one", "two"):
            (Path(folder) / name).mkdir()
        index_memory(Path(folder) / "index")
        compare("ViT-B", vit_b(Path(folder) / "vit_b"), 224, Path(folder) / "one", timed=True)
        tiny = load_teacher(TeacherSpec("dinov2", "builtin:dinov2-tiny", dtype="bfloat16"))
        compare("dinov2-tiny", tiny, 64, Path(folder) / "two", timed=False)


if __name__ == "__main__":
    main()
