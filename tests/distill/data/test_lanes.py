import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from distill.data.lanes import LANES, Lanes
from distill.data.order import ATTEMPTS
from distill.data.shards import ShardedSource, sample_index, shard_and_place


class Counted(ShardedSource):
    """Shards of known counts that hold nothing; `asked` are those that were opened for a count."""

    def __init__(self, counts):
        self.true = np.array(counts)
        self.shards = [None] * len(counts)
        self.counts = np.full(len(counts), -1, dtype=np.int64)
        self.asked, self.prepared, self.ahead = [], set(), set()

    def count(self, shards):
        for shard in shards:
            self.asked.append(shard)
            self.counts[shard] = self.true[shard]

    def prepare(self, shards):
        self.prepared |= set(shards)

    def fetch_ahead(self, shards):
        self.ahead |= set(shards)


def draw(counts, draws, seed=5, number=0):
    epoch, index = Lanes(Counted(counts), seed, number).at(np.asarray(draws))
    return [(int(e), *shard_and_place(int(i))) for e, i in zip(epoch, index, strict=True)]


@pytest.mark.parametrize("shards", [1, 3, 16, 17, 40])
def test_every_sample_of_every_shard_comes_once_an_epoch(shards):
    counts = np.random.default_rng(shards).integers(1, 12, shards)
    seen = Counter(draw(counts, range(int(counts.sum()) * 8)))
    everything = {(s, p) for s in range(shards) for p in range(counts[s])}
    assert set(seen.values()) == {1}  # (epoch, shard, place): never twice
    for epoch in range(2):
        assert {(s, p) for e, s, p in seen if e == epoch} == everything
    assert max(epoch for epoch, _, _ in seen) >= 5


def test_a_draw_can_be_found_by_itself_and_in_any_company():
    counts = [3, 9, 1, 4, 12, 5, 5, 2, 8, 1, 1, 6, 7, 2, 3, 10, 4, 9, 2, 6]
    one_by_one = draw(counts, range(2000))
    for k in (0, 15, 16, 777, 1999):
        assert draw(counts, [k]) == [one_by_one[k]]
    some = [1500, 3, 3, 1999, 16]
    assert draw(counts, some) == [one_by_one[k] for k in some]


def test_only_the_shards_on_the_way_are_opened():
    source = Counted([50] * 200)
    lanes = Lanes(source, 0, 0)
    lanes.at(np.arange(32))
    assert len(source.asked) == LANES
    assert source.prepared == set(source.asked)
    assert len(source.ahead) == LANES  # the next of each lane
    assert not source.ahead & source.prepared
    ahead = set(source.ahead)
    lanes.at(np.arange(LANES * 50, LANES * 50 + 32))
    assert set(source.asked[LANES:]) == ahead
    assert len(source.asked) == 2 * LANES


def test_far_ahead_no_shard_is_counted_that_is_not_passed():
    source = Counted([10] * 320)
    Lanes(source, 0, 0).at(np.array([LANES * 95]))  # the tenth shard of the first lane
    assert len(source.asked) == len(set(source.asked)) == 10


def test_orders_are_of_seed_source_and_epoch():
    counts = [40] * 20
    plain = draw(counts, range(3200))
    assert draw(counts, range(1600), seed=6) != plain
    assert draw(counts, range(1600), number=1) != plain
    first = [(s, p) for e, s, p in plain if e == 0]
    second = [(s, p) for e, s, p in plain if e == 1]
    assert set(first) == set(second)
    assert first != second
    places = [p for e, s, p in plain if (e, s) == (0, 4)]
    assert sorted(places) == list(range(40)) != places


def test_neighbours_in_the_stream_are_of_different_shards():
    shards = [s for _, s, _ in draw([40] * 20, range(160))]
    for start in range(0, 160, LANES):
        assert len(set(shards[start : start + LANES])) == LANES


def test_replacements_are_others_first_of_the_same_shard():
    source = Counted([30, 2, 1, 5])
    lanes = Lanes(source, 3, 0)
    source.count(range(4))
    many = [shard_and_place(i) for i in lanes.replacements(0, 7)]
    assert len(set(many)) == ATTEMPTS
    assert {shard for shard, _ in many} == {0}
    assert (0, 7) not in many
    lone = [shard_and_place(i) for i in lanes.replacements(0, int(sample_index(2, 0)))]
    assert sorted(shard for shard, _ in lone) == [0, 1, 3]
    pair = [shard_and_place(i) for i in lanes.replacements(4, int(sample_index(1, 0)))]
    assert pair[0] == (1, 1)
    assert all(place < source.true[shard] for shard, place in pair)
    assert pair != [shard_and_place(i) for i in lanes.replacements(5, int(sample_index(1, 0)))]


@pytest.mark.slow
def test_a_hundred_million_samples_take_little_memory():
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from distill.data.lanes import Lanes
from distill.data.webdataset import open_webdataset
from test_lanes import Counted
def resident():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024
before = resident()
source = open_webdataset("http://localhost:9/{00000..09999}.tar")
counted = Counted([10_000 + i % 7 for i in range(len(source.shards))])
lanes = Lanes(counted, 0, 0)
for start in (0, 10**6, 10**8, 10**9):
    epoch, _ = lanes.at(np.arange(start, start + 256))
assert epoch.max() == 9, epoch
print(resident() - before)
"""
    here = __file__.rsplit("/", 1)[0]
    done = subprocess.run(
        [sys.executable, "-c", code, here], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 100  # MiB
