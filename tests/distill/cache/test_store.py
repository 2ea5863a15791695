"""Rows come back as they were put, or not at all."""

import errno
import json
import os
import shutil
import zlib

import numpy as np
import pytest
import torch
from stores import KEY, SOURCES, STATISTICS, check_all_that_is_there, features, rows, same

from distill.cache import FeatureCache, StoreKey, shard, store
from distill.cache.room import used_bytes
from students import Features, UserError


@pytest.fixture
def said():
    return []


@pytest.fixture
def opened(tmp_path, said):
    """Opens the store in a cache of its own, as another process would."""
    caches = []

    def open_store(sources=SOURCES, key=KEY, limit=None, form="exact", statistics=STATISTICS):
        caches.append(FeatureCache(tmp_path / "cache", limit, form, said.append))
        return caches[-1].store(key, sources, statistics)

    yield open_store
    for cache in caches:
        cache.close()


@pytest.fixture
def small_shards(monkeypatch):
    """Five rows a shard."""
    monkeypatch.setattr(shard, "_MOST_ROWS", 5)


def filled(opened, count=12, **options):
    made = opened(**options)
    made.put(rows(range(count)), features(rows(range(count))))
    made.close()
    return made


def files(made, suffix):
    return sorted(made.folder.glob(f"*.{suffix}"))


def test_rows_come_back_in_the_order_asked_for(opened):
    made = opened()
    given = rows([5, 3, 9])
    empty, mask = made.get(given)
    assert not mask.any()
    assert empty.summary is None
    assert not made.folder.exists()
    assert made.put(given, features(given)) == 3
    asked = rows([9, 1, 5, 9])
    found, mask = made.get(asked)
    assert mask.tolist() == [True, False, True, True]
    assert same(found, features(asked[mask.numpy()]))


def test_source_index_and_view_are_all_of_the_key(opened):
    made = opened()
    given = np.concatenate([rows([0, 3], s, v) for s in (0, 1) for v in (0, 1, 65535)])
    made.put(given, features(given))
    assert check_all_that_is_there(made, given).all()
    assert not made.get(rows([3], 0, 2))[1].any()
    assert not made.get(rows([4], 1, 1))[1].any()
    assert not made.get(rows([1 << bit for bit in range(2, 40)]))[1].any()
    assert not made.get(rows([0, 3], 0, 1 << 15))[1].any()
    assert check_all_that_is_there(made, given).all()
    far = rows([(1 << 40) - 1], 1, 7)
    made.put(far, features(far))
    assert check_all_that_is_there(made, far).all()
    assert check_all_that_is_there(made, given).all()


def test_rows_beyond_keys_are_an_error(opened):
    made = opened()
    for wrong in (rows([0], source=2), rows([-1]), rows([1 << 40]), rows([0], view=1 << 16)):
        with pytest.raises(ValueError, match="beyond"):
            made.get(wrong)
    with pytest.raises(ValueError, match=r"not \(n, 3\)"):
        made.get(np.zeros(3, dtype=np.int64))


def test_another_order_of_sources_and_a_new_one_keep_the_rows(opened):
    made = opened()
    given = np.concatenate([rows([1, 2], 0), rows([1], 1)])
    made.put(given, features(given))
    again = opened(sources=["hf:new", "folder:/b", "folder:/a"])
    found, mask = again.get(np.concatenate([rows([1, 2], 2), rows([1], 1)]))
    assert mask.all()
    assert same(found, features(given))
    assert not again.get(rows([1, 2], 0))[1].any()
    assert not opened(sources=["folder:/b"]).get(rows([2], 0))[1].any()


def test_other_keys_are_other_stores(opened):
    filled(opened)
    others = [
        StoreKey(KEY.teacher | {"files": "b"}, KEY.size, KEY.views, "tiny"),
        StoreKey(KEY.teacher, 64, KEY.views, "tiny"),
        StoreKey(KEY.teacher, KEY.size, {"canvas": 96}, "tiny"),
    ]
    for key in others:
        assert not opened(key=key).get(rows([1]))[1].any()
    label = StoreKey(KEY.teacher, KEY.size, KEY.views, "another name")
    assert opened(key=label).get(rows([1]))[1].all()


def test_what_is_there_is_not_written_twice(opened):
    made = opened()
    given = rows([1, 2, 1])
    assert made.put(given, features(given)) == 2
    assert made.put(given, features(given)) == 0
    assert made.put(rows([2, 7]), features(rows([2, 7]))) == 1
    assert check_all_that_is_there(made, rows([1, 2, 7])).all()


def test_shards_are_sealed_and_rows_found_in_all_of_them(opened, small_shards):
    made = filled(opened, 12)
    assert len(files(made, "seal")) == 2
    assert len(files(made, "rows")) == 3
    assert check_all_that_is_there(opened(), rows(range(14))).tolist() == [True] * 12 + [False] * 2


def test_the_next_process_goes_on_in_the_shard_that_was_left(opened, small_shards):
    filled(opened, 3)
    again = opened()
    again.put(rows([7]), features(rows([7])))
    again.close()
    assert len(files(again, "rows")) == 1
    assert check_all_that_is_there(opened(), rows([0, 1, 2, 7])).all()


def test_two_writers_have_shards_of_their_own_and_read_each_other(opened, monkeypatch):
    monkeypatch.setattr(store, "LOOK_AFTER", 0.0)
    one, two = opened(), opened()
    for turn in range(4):
        one.put(rows([turn]), features(rows([turn])))
        two.put(rows([10 + turn]), features(rows([10 + turn])))
        everything = np.concatenate([rows(range(turn + 1)), rows(range(10, 11 + turn))])
        assert check_all_that_is_there(one, everything).all()
        assert check_all_that_is_there(two, everything).all()
    assert len(files(one, "rows")) == 2


@pytest.mark.parametrize("form", ["float16", "int8"])
def test_lossy_rows_are_as_kept(opened, form):
    made = opened(form=form)
    given = rows(range(6))
    expected = made.as_kept(features(given))
    assert not same(expected, features(given))
    made.put(given[:4], features(given[:4]))
    found, mask = opened(form=form).get(given)
    assert mask.tolist() == [True] * 4 + [False] * 2
    assert same(found, expected.map(lambda _, tokens: tokens[:4]))


def test_shards_keep_the_statistics_that_they_were_written_with(opened):
    filled(opened, 3, form="int8")
    wider = {kind: type(held)(held.mean + 1, 3 * held.std) for kind, held in STATISTICS.items()}
    again = opened(form="int8", statistics=wider)
    before = again.get(rows([2]))[0].dense
    again.put(rows([8]), features(rows([8])))
    assert len(files(again, "rows")) == 2
    found, mask = again.get(rows([8, 0, 2]))
    assert mask.all()
    assert torch.equal(found.dense[2:], before)
    truth = features(rows([8, 0, 2]))
    assert torch.nn.functional.cosine_similarity(found.dense, truth.dense, dim=-1).min() > 0.999


def test_rows_that_cannot_be_kept_are_left_out(opened):
    made = opened(form="int8")
    given = features(rows([1, 2]))
    given.dense[0, 0, 0, 0] = float("nan")
    assert made.put(rows([1, 2]), given) == 1
    assert made.get(rows([1, 2]))[1].tolist() == [False, True]


def test_features_of_another_layout_are_an_error(opened):
    made = filled(opened)
    with pytest.raises(ValueError, match="in a store of"):
        made.put(rows([40]), Features(None, features(rows([40])).dense))


def test_an_image_that_has_changed_is_missing_and_replaced(opened, said):
    made = opened()
    prints = np.array([11, 12], dtype=np.uint32)
    made.put(rows([1, 2]), features(rows([1, 2])), prints)
    asked = np.array([11, 99], dtype=np.uint32)
    assert made.get(rows([1, 2]), asked)[1].tolist() == [True, False]
    assert len(said) == 1
    other = features(rows([77]))
    assert made.put(rows([2]), other, asked[1:]) == 1
    made.close()
    for found, mask in (made.get(rows([2]), asked[1:]), opened().get(rows([2]))):
        assert mask.all()
        assert same(found, other)


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("at", [0, -41, -40, -30, -20, -5], ids=str)
def test_a_flipped_bit_loses_its_row_alone_once_and_for_all(opened, said, at):
    made = filled(opened, 4)
    path = files(made, "rows")[0]
    stride = path.stat().st_size // 4
    flip(path, 2 * stride + at % stride)
    again = opened()
    mask = check_all_that_is_there(again, rows(range(4)))
    # The last of them is the record's own check, which nothing is read by.
    assert mask.tolist() == ([True] * 4 if at == -5 else [True, True, False, True])
    if at == -5:
        return
    assert len(said) == 1
    assert "damaged" in said[0]
    assert check_all_that_is_there(opened(), rows(range(4))).tolist() == mask.tolist()
    assert len(said) == 1  # it is known by now
    assert again.put(rows([2]), features(rows([2]))) == 1
    assert check_all_that_is_there(again, rows(range(4))).all()
    again.close()
    assert check_all_that_is_there(opened(), rows(range(4))).all()
    assert len(said) == 1


@pytest.mark.parametrize("field", range(0, 40, 4))
def test_a_damaged_record_is_no_row(opened, said, small_shards, field):
    made = filled(opened, 5)
    flip(files(made, "index")[0], 3 * 40 + field)
    again = opened()
    assert check_all_that_is_there(again, rows(range(5))).tolist() == [True] * 3 + [False, True]
    assert len(said) == 1
    assert again.put(rows([3]), features(rows([3]))) == 1


def test_lost_files_and_lost_ends(opened, said, small_shards):
    made = filled(opened, 15)
    first, second, third = files(made, "rows")
    first.unlink()
    os.truncate(second, second.stat().st_size // 5 * 2 + 3)
    os.truncate(third.with_suffix(".index"), 50)
    again = opened()
    expected = [False] * 5 + [True, True] + [False] * 3 + [True] + [False] * 4
    assert check_all_that_is_there(again, rows(range(15))).tolist() == expected
    assert len(said) == 3
    assert again.put(rows(range(15)), features(rows(range(15)))) == 12
    assert check_all_that_is_there(opened(), rows(range(15))).all()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"key": {}}'])
def test_a_damaged_about_is_written_again(opened, content):
    made = filled(opened, 3)
    (made.folder / "about.json").write_bytes(content)
    again = opened()
    assert not again.get(rows([1]))[1].any()
    again.put(rows([8]), features(rows([8])))
    assert check_all_that_is_there(again, rows([0, 1, 2, 8])).all()


def test_damaged_statistics_lose_their_shards(opened, said):
    made = filled(opened, 3, form="int8")
    flip(next(made.folder.glob("statistics-*")), -3)
    again = opened(form="int8")
    assert not again.get(rows(range(3)))[1].any()
    assert len(said) == 1
    assert again.put(rows([1]), features(rows([1]))) == 1
    again.close()
    assert opened(form="int8").get(rows(range(3)))[1].all()


@pytest.mark.parametrize("limit", [1, 17_000, 20_000, 40_000])
def test_the_limit_is_kept_to_by_all_writers_together(opened, said, tmp_path, small_shards, limit):
    writers = [opened(limit=limit), opened(limit=limit), opened(limit=limit, form="int8")]
    written = 0
    for turn in range(60):
        writer = writers[turn % 3]
        written += writer.put(rows([turn]), features(rows([turn])))
        assert used_bytes(tmp_path / "cache") <= limit
    assert len(said) == 3  # one for each cache
    assert all("limit" in line for line in said)
    assert (written > 0) == (limit > 17_000)
    for writer in writers[:2]:
        check_all_that_is_there(writer, rows(range(60)))


def test_most_of_the_limit_is_used(opened, tmp_path):
    made = opened(limit=100_000)
    for turn in range(200):
        made.put(rows([turn]), features(rows([turn])))
    made.close()
    assert used_bytes(tmp_path / "cache") > 100_000 - (20 << 10)


@pytest.mark.parametrize("fails_at", [0, 1, 2, 3])
def test_a_full_disk_stops_the_cache_and_nothing_else(opened, said, monkeypatch, fails_at):
    """The disk takes half of a write and then no more."""
    filled(opened, 2)
    written = []

    def pwrite(descriptor, content, offset, real=os.pwrite):
        written.append(len(content))
        if len(written) > fails_at:
            if len(written) == fails_at + 1:
                return real(descriptor, content[: len(content) // 2], offset)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, content, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        full = opened()
        puts = [full.put(rows([10 + n]), features(rows([10 + n]))) for n in range(4)]
        assert sum(puts) == fails_at // 2
        assert len(said) == 1
        assert "No space left" in said[0]
        assert len(written) == fails_at + 2  # half a write, an error, and no more tries
        assert check_all_that_is_there(full, rows([0, 1])).all()
        full.flush()
        full.close()
    again = opened()
    kept = [0, 1, *range(10, 10 + sum(puts))]
    assert check_all_that_is_there(again, rows(kept)).all()
    again.put(rows(range(20)), features(rows(range(20))))
    assert check_all_that_is_there(opened(), rows(range(20))).all()


def test_a_folder_that_cannot_be_made_is_said_once(tmp_path, said):
    (tmp_path / "file").touch()
    cache = FeatureCache(tmp_path / "file" / "cache", say=said.append)
    made = cache.store(KEY, SOURCES)
    for _ in range(2):
        assert made.put(rows([1]), features(rows([1]))) == 0
    assert not made.get(rows([1]))[1].any()
    assert len(said) == 1


def test_wrong_arguments_are_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="did you mean 'int8'"):
        FeatureCache(tmp_path, format="int4")
    with pytest.raises(UserError, match="is a file"):
        FeatureCache(tmp_path / "file")
    with pytest.raises(UserError, match="above 0"):
        FeatureCache(tmp_path, limit_bytes=0)


def test_files_as_documented(opened, small_shards):
    """A reader of its own: bytes, and what docs/cache.md says of them."""
    given = rows([4, 2, 7, 1, 3], source=1, view=6)
    made = opened()
    made.put(given, features(given), np.arange(100, 105, dtype=np.uint32))
    about = json.loads((made.folder / "about.json").read_text())
    assert about["layout"] == {
        "summary": 12, "dense": 20, "grid": [3, 2], "dtype": "float32", "format": "exact",
    }  # fmt: skip
    content, index = (files(made, suffix)[0].read_bytes() for suffix in ("rows", "index"))
    payload = 4 * (12 + 6 * 20)
    assert len(content) == 5 * (payload + 40)
    truth = features(given)
    for slot in range(5):
        row = content[slot * (payload + 40) : (slot + 1) * (payload + 40)]
        record = row[payload:]
        assert record == index[slot * 40 : (slot + 1) * 40]
        words = np.frombuffer(record, "<u4")
        assert np.frombuffer(record[8:16], "<u8")[0] == given[slot, 1]
        assert words[4:7].tolist() == [6, 100 + slot, slot]
        assert words[7] == zlib.crc32(record[:24] + row[:payload])
        numbers = np.frombuffer(row[:payload], "<f4")
        assert np.array_equal(numbers[:12], truth.summary[slot].numpy())
        assert np.array_equal(numbers[12:], truth.dense[slot].numpy().ravel())
    shutil.rmtree(made.folder)
    assert not opened().get(given)[1].any()
