"""A process that is killed at any moment leaves a cache that is right and goes on filling."""

import os
import signal

import pytest
from stores import KEY, SOURCES, check_all_that_is_there, features, rows

from distill.cache import FeatureCache, shard
from distill.cache.room import used_bytes
from students.features import concatenated

# What changes a file, and so what a kill can come between. Half of a write may be done.
CALLS = ("pwrite", "ftruncate", "replace", "fsync", "open", "mkdir")


def killed_at(folder, call, content):
    """Puts rows one by one in a process of its own that is killed before (or half through) its
    call number `call`; the number of rows that `put` had returned of, or None if it was not."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            told = pipe.read()
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return len(told) if os.WIFSIGNALED(status) else None
    left = [call]
    for name in CALLS:
        setattr(os, name, _deadly(name, getattr(os, name), left))
    try:
        with FeatureCache(folder) as cache:
            store = cache.store(KEY, SOURCES)
            for row in range(len(content)):
                if store.put(rows([row]), content[row]):
                    os.write(writing, b".")
        os._exit(0)
    finally:
        os._exit(1)


def _deadly(name, real, left):
    def call(*arguments, **options):
        left[0] -= 1
        if left[0] < 0:
            if name == "pwrite":
                descriptor, content, offset = arguments
                real(descriptor, content[: len(content) // 2], offset)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    return call


@pytest.fixture
def content(monkeypatch):
    """Five rows; two to a shard."""
    monkeypatch.setattr(shard, "_MOST_ROWS", 2)
    return [features(rows([row])) for row in range(5)]


@pytest.mark.slow
def test_killed_at_every_call(tmp_path, content):
    for call in range(200):
        folder = tmp_path / str(call)
        done = killed_at(folder, call, content)
        if done is None:
            assert call > 30
            return
        said: list[str] = []
        with FeatureCache(folder, say=said.append) as cache:
            store = cache.store(KEY, SOURCES)
            there = check_all_that_is_there(store, rows(range(5)))
            # What put has said it wrote is there, and at most the row that it was at beside.
            assert there[:done].all()
            assert there.sum() <= done + 1
            assert said == []  # what is half written is not there, and no damage
            assert store.put(rows(range(5)), concatenated(content)) == 5 - int(there.sum())
        with FeatureCache(folder) as cache:
            store = cache.store(KEY, SOURCES)
            assert check_all_that_is_there(store, rows(range(5))).all()
            assert len(list(store.folder.glob("*.rows"))) <= 4
    pytest.fail("never came to its end")


def test_killed_again_and_again(tmp_path, content):
    """One cache, ten kills, each a few calls further than a process that is started anew gets."""
    for call in range(6, 36, 3):
        killed_at(tmp_path, call, content)
        with FeatureCache(tmp_path) as cache:
            check_all_that_is_there(cache.store(KEY, SOURCES), rows(range(5)))
    assert killed_at(tmp_path, 1 << 30, content) is None
    with FeatureCache(tmp_path) as cache:
        assert check_all_that_is_there(cache.store(KEY, SOURCES), rows(range(5))).all()


def test_room_that_the_dead_had_reserved_is_given_back(tmp_path):
    child = os.fork()
    if not child:
        store = FeatureCache(tmp_path, limit_bytes=40_000).store(KEY, SOURCES)
        store.put(rows([0]), features(rows([0])))
        os._exit(0)
    os.waitpid(child, 0)
    assert used_bytes(tmp_path) > 20_000
    with FeatureCache(tmp_path, limit_bytes=40_000) as cache:
        store = cache.store(KEY, SOURCES)
        assert store.put(rows(range(20)), features(rows(range(20)))) == 19
        assert used_bytes(tmp_path) <= 40_000
        assert check_all_that_is_there(store, rows(range(20))).all()
