"""The largest batch that fits: tried on a GPU, worked out from small batches on a processor.

A GPU that is full says so and goes on; a process that takes more of the machine's memory than there
is gets killed. So peaks of small batches are measured there, and a line drawn through them.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

MULTIPLE = 8
"""Batches are cut down to a multiple of this."""

MOST = 2**16
"""Images of a batch beyond which nothing is tried."""

KEEP_FREE = 0.1
"""Share of a machine's memory that a run on a processor leaves: loaders and other programs."""


@dataclass(frozen=True)
class MemoryLine:
    """Peak memory as a line: `fixed` bytes, and `per_image` for each image of a batch."""

    fixed: float
    per_image: float

    def at(self, images: int) -> float:
        """Bytes for a batch."""
        return self.fixed + self.per_image * images

    def largest(self, limit: float, most: int = MOST) -> int:
        """The largest batch within `limit` bytes, rounded down; 0 if a single image does not fit.
        A line that does not rise gives `most`."""
        if self.at(1) > limit:
            return 0
        if self.per_image <= 0:
            return most
        return rounded(min(most, int((limit - self.fixed) / self.per_image)))


def fit_line(peaks: Sequence[tuple[int, int]]) -> MemoryLine:
    """The least-squares line through (images, peak bytes), of at least two different batches."""
    images, held = zip(*peaks, strict=True)
    mean, level = sum(images) / len(images), sum(held) / len(held)
    spread = sum((n - mean) ** 2 for n in images)
    slope = sum((n - mean) * (peak - level) for n, peak in peaks) / spread
    return MemoryLine(level - slope * mean, slope)


def largest_by_trying(fits: Callable[[int], bool], start: int, most: int = MOST) -> int:
    """The largest batch for which `fits` is true, rounded down; 0 if one image does not fit.

    From `start` the batch is doubled, or halved if that does not fit, then the gap is bisected.
    Nothing larger than `most` is tried.
    """
    low, high = 0, min(start, most)
    while high <= most and fits(high):
        low, high = high, 2 * high
    if low and high > most:
        return rounded(low)
    while low == 0 and high > 1:
        half = high // 2
        if fits(half):
            low = half
        else:
            high = half
    while low:
        middle = rounded((low + high) // 2)
        if middle <= low:  # the next that would count
            middle = low + 1 if low < MULTIPLE else rounded(low) + MULTIPLE
        if middle >= high:
            break
        if fits(middle):
            low = middle
        else:
            high = middle
    return rounded(low)


def rounded(images: int) -> int:
    """Down to a multiple of MULTIPLE, but for less than one of it."""
    return images // MULTIPLE * MULTIPLE if images >= MULTIPLE else images


class Peak:
    """Peak memory of a block, in bytes; None where the system does not tell."""

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure a block: torch's tensors on a GPU, else all resident memory of this process."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device)
        return
    known = _forget_peak()
    yield peak
    if known:
        peak.bytes = _status("VmHWM")


def memory_limit(device: torch.device) -> int | None:
    """Bytes that this process may come to hold on the device; None where the system does not tell.

    On a processor: what it holds, and what the machine and its control group have left, less
    KEEP_FREE.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    held = _status("VmRSS")
    left = [n for n in (_number("/proc/meminfo", "MemAvailable:"), _group_left()) if n is not None]
    return None if held is None or not left else int((held + min(left)) * (1 - KEEP_FREE))


def _forget_peak() -> bool:
    """Start a new peak of resident memory from what is really in use."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        # The C library keeps what was freed; a smaller batch would seem to need as much.
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return _status("VmHWM") is not None


def _status(name: str) -> int | None:
    return _number("/proc/self/status", f"{name}:")


def _number(path: str, name: str) -> int | None:
    """Bytes behind a name in one of the kernel's files of "name: N kB"."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)


def _group_left(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that the control group of this process, as it sees it, may still take."""
    for most, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            limit, now = (root / most).read_text().strip(), (root / used).read_text()
        except OSError:
            continue
        return None if limit == "max" else max(0, int(limit) - int(now))
    return None
