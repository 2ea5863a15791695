import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from loaded import SETTINGS, assert_same, load
from PIL import Image

from distill.data.loader import Batch, batches
from distill.data.order import ATTEMPTS, Mixture, Permutation
from distill.data.source import BadSample
from distill.data.sources import open_source
from distill.data.views import cut, draw_view
from students.errors import UserError


class Plain:
    """Images in memory; those in `bad` cannot be decoded."""

    def __init__(self, n, bad=(), offset=0):
        self.n, self.bad, self.offset = n, set(bad), offset

    def __len__(self):
        return self.n

    def read(self, index):
        if index in self.bad:
            raise BadSample(self.name(index), "cannot be read")
        g = torch.Generator().manual_seed(self.offset + index)
        return torch.randint(0, 256, (3, 20 + index % 5, 30), dtype=torch.uint8, generator=g)

    def name(self, index):
        return f"i{index}"


@pytest.fixture(scope="module")
def sources():
    return {"a": (Plain(17, bad=[3, 4]), 0.75), "b": (Plain(5, offset=100), 0.25)}


def test_a_batch_is_what_the_parts_say(sources):
    mixture = Mixture([0.75, 0.25], 7)
    orders = [Permutation(17, 7, 0), Permutation(5, 7, 1)]
    got = load({"a": (Plain(17), 0.75), "b": (Plain(5, offset=100), 0.25)})
    assert len(got) == 5
    for t, batch in enumerate(got):
        assert batch.pixels.shape == (12, 3, 24, 24)
        assert batch.pixels.dtype == torch.uint8
        assert batch.draws.shape == (12, 6)
        assert batch.positions.tolist() == list(range(12 * t, 12 * t + 12))
        assert batch.bad == []
        where = zip(*mixture.at(batch.positions.numpy()), strict=True)
        for row, (source, draw) in enumerate(where):
            epoch, index = (int(part[0]) for part in orders[source].at(np.array([draw])))
            origin = [Plain(17), Plain(5, offset=100)][source]
            image = origin.read(index)
            view = draw_view("eupe", (0.25, 1.0), 7, epoch, index, image.shape[1:])
            assert torch.equal(batch.pixels[row], cut(image, view, 24))
            assert np.array_equal(batch.draws[row].numpy(), view.draws)
            assert batch.names[row] == f"{'ab'[source]}/i{index}"


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(sources, workers):
    assert_same(load(sources), load(sources, workers=workers))


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_change_nothing(sources, workers):
    whole = load(sources)
    parts = [load(sources, rank=r, world=2, workers=workers) for r in (0, 1)]
    joined = [
        Batch(
            torch.cat([x.pixels, y.pixels]),
            torch.cat([x.draws, y.draws]),
            torch.cat([x.positions, y.positions]),
            torch.cat([x.samples, y.samples]),
            x.names + y.names,
            x.bad + y.bad,
        )
        for x, y in zip(*parts, strict=True)
    ]
    assert_same(whole, joined)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_later_step_is_asked_for_directly(sources, workers):
    whole = load(sources, steps=7)
    assert_same(whole[4:], load(sources, first_step=4, steps=3, workers=workers))
    assert load(sources, steps=0, workers=workers) == []


def test_the_seed_changes_views(sources):
    first, second = load(sources, steps=1), load(sources, steps=1, view_seed=8)
    assert not torch.equal(first[0].pixels, second[0].pixels)


def test_bad_samples_are_replaced_and_named():
    source = {"a": (Plain(17, bad=[3, 4]), 1.0)}
    clean = load({"a": (Plain(17), 1.0)}, steps=22)
    got = load(source, steps=22)  # 264 positions: 15 epochs and a little
    named = [name for batch in got for name, _ in batch.bad]
    assert {reason for batch in got for _, reason in batch.bad} == {"cannot be read"}
    assert named.count("a/i3") >= 15  # each epoch, and now and then as a replacement
    assert set(named) == {"a/i3", "a/i4"}
    replacements = set()
    for batch, other in zip(got, clean, strict=True):
        assert len(batch.names) == 12
        assert not {"a/i3", "a/i4"} & set(batch.names)
        for row, name in enumerate(other.names):
            if name in ("a/i3", "a/i4"):
                replacements.add(batch.names[row])
            else:
                assert torch.equal(batch.pixels[row], other.pixels[row])
    assert len(replacements) > 5  # not always the same neighbour


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("n", "tries"), [(1, 1), (3, 3), (100, ATTEMPTS + 1)])
def test_nothing_but_bad_samples_is_one_clear_line(n, tries, workers):
    with pytest.raises(UserError) as caught:
        load({"a": (Plain(n, bad=range(n)), 1.0)}, workers=workers)
    message = str(caught.value)
    assert f"first of {tries} in a row" in message
    assert "'a'" in message
    assert "cannot be read" in message
    assert "\n" not in message


def test_one_good_sample_of_eleven_is_found():
    got = load({"a": (Plain(11, bad=range(10)), 1.0)}, steps=1)
    assert set(got[0].names) == {"a/i10"}


def test_a_mistake_is_said_at_once(sources):
    with pytest.raises(UserError, match=r"batch_size 12 .* 5 processes: take 10 or 15"):
        batches(sources, **{**SETTINGS, "world": 5})
    with pytest.raises(UserError, match=r"2 .* 3 processes: take 3$"):
        batches(sources, **{**SETTINGS, "batch_size": 2, "world": 3})
    with pytest.raises(UserError, match="view policy"):
        batches(sources, **{**SETTINGS, "policy": "eup"})
    with pytest.raises(UserError, match="no source"):
        batches({}, **SETTINGS)


def test_an_abandoned_loader_leaves_no_process(sources):
    before = set(multiprocessing.active_children())
    stream = batches(sources, **{**SETTINGS, "workers": 2, "steps": 1000})
    next(stream)
    assert len(set(multiprocessing.active_children()) - before) == 2
    stream.close()
    for _ in range(50):
        if not set(multiprocessing.active_children()) - before:
            break
        time.sleep(0.1)
    assert not set(multiprocessing.active_children()) - before


def children(process):
    listed = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [int(child) for child in listed]


def alive(process):
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def gone(processes, seconds=15):
    until = time.monotonic() + seconds
    while any(map(alive, processes)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(alive, processes))


LOADING = """
import sys, time
sys.path.insert(0, sys.argv[1])
from test_loader import SETTINGS, Plain
from distill.data.loader import batches
class Slow(Plain):
    def read(self, index):
        if {slow} and index % 7 == 6:
            time.sleep(600)
        return super().read(index)
stream = batches({{"a": (Slow(17), 1.0)}}, **{{**SETTINGS, "workers": 2, "steps": 1000}})
{then}
"""


def started(then, slow=False):
    """A process that loads with two workers, and their ids, once `then` says that it does."""
    code = LOADING.format(then=then, slow=slow)
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", code, here]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "loading\n"
    workers = children(process.pid)
    assert len(workers) == 2
    return process, workers


STUCK = """
import threading
threading.Thread(target=next, args=(stream,), daemon=True).start()
time.sleep(2)
print("loading", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("slow", [False, True])
def test_no_worker_outlives_a_main_process_that_is_killed(slow):
    then = STUCK if slow else 'next(stream); print("loading", flush=True)'
    process, workers = started(then + "\ntime.sleep(600)", slow)
    process.kill()
    process.wait()
    assert gone(workers)
    process.stdout.close()
    process.stderr.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slow", "end"),
    [
        (False, ""),
        (True, ""),
        (False, "raise ValueError('of the main process')"),
        (False, "stream.close()"),
    ],
)
def test_no_worker_holds_up_the_end_of_the_main_process(slow, end):
    then = STUCK if slow else 'next(stream); print("loading", flush=True)'
    process, workers = started(f"{then}\n{end}", slow)
    _, errors = process.communicate(timeout=20)
    assert gone(workers, 1)
    assert ("of the main process" in errors) == ("raise" in end)
    assert "Exception ignored" not in errors


def test_workers_go_on_at_what_stops_the_main_process(sources):
    stream = batches(sources, **{**SETTINGS, "workers": 2, "steps": 40})
    before = set(multiprocessing.active_children())
    got = [next(stream)]
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 2
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)
        os.kill(worker.pid, signal.SIGTERM)
    got += stream
    assert_same(got, load(sources, steps=40))


def test_a_folder_of_photographs(tmp_path):
    data = pytest.importorskip("skimage.data")
    for name in ("astronaut", "chelsea", "rocket", "coffee"):
        Image.fromarray(getattr(data, name)()).save(tmp_path / f"{name}.jpg", quality=90)
    (tmp_path / "text.jpg").write_text("no image")
    source = {"photos": (open_source(f"folder:{tmp_path}"), 1.0)}
    changes = {"batch_size": 5, "steps": 2, "canvas": 32}
    one = load(source, **changes)
    assert_same(one, load(source, workers=1, **changes))
    shown = {name for batch in one for name in batch.names}
    assert shown == {f"photos/{n}.jpg" for n in ("astronaut", "chelsea", "rocket", "coffee")}
    assert [name for batch in one for name, _ in batch.bad] == ["photos/text.jpg"] * 2


def test_views_come_round_again(sources):
    """With two views a sample, the third epoch's of a sample is the first one's, pixel by pixel."""
    seen, repeated = {}, 0
    for batch in load(sources, steps=40, per_sample=2):
        for row, sample in enumerate(batch.samples.tolist()):
            assert sample[2] in (0, 1)
            before = seen.setdefault(tuple(sample), (batch.pixels[row], batch.draws[row]))
            assert torch.equal(before[0], batch.pixels[row])
            assert torch.equal(before[1], batch.draws[row])
            repeated += before[0] is not batch.pixels[row]
    assert repeated > 20


def test_samples_say_what_is_shown(sources):
    """Source and index are those of the image in the row, replacements included."""
    names = list(sources)
    for batch in load(sources, steps=20):
        for (source, index, _), name in zip(batch.samples.tolist(), batch.names, strict=True):
            assert name == f"{names[source]}/i{index}"
