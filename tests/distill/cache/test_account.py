"""What a cache will take and what is in it, against the files."""

import io
import os

import pytest
from rich.console import Console
from stores import KEY, SOURCES, STATISTICS, features, rows

from distill.cache import FeatureCache, RowLayout, estimate_bytes, info, print_info, shard
from distill.cache.account import shown_bytes
from students import UserError


def filled(folder, count, form="exact"):
    with FeatureCache(folder, format=form) as cache:
        cache.store(KEY, SOURCES, STATISTICS).put(rows(range(count)), features(rows(range(count))))


@pytest.mark.parametrize("form", ["exact", "float16", "bfloat16", "int8"])
def test_the_estimate_is_what_it_comes_to(tmp_path, monkeypatch, form):
    monkeypatch.setattr(shard, "_MOST_ROWS", 100)
    filled(tmp_path, 550, form)
    estimate = estimate_bytes(550, [RowLayout(12, 20, (3, 2), "float32", form)])
    held = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert 0 <= estimate - held <= 16 << 10


def test_a_layout_for_each_teacher_and_size():
    one = RowLayout(None, 256, (16, 16), "bfloat16", "int8")
    two = RowLayout(768, 768, (14, 14), "float32")
    assert estimate_bytes(1000, [one, two]) == estimate_bytes(1000, [one]) + estimate_bytes(
        1000, [two]
    )
    # 10^6 images of a ViT-B at 224 pixels in float32: 605 kB each.
    assert estimate_bytes(10**6, [two]) == pytest.approx(197 * 768 * 4 * 1e6, rel=1e-3)


def test_info_says_what_is_there(tmp_path):
    filled(tmp_path, 5, "int8")
    filled(tmp_path, 40)
    one, two = info(tmp_path)
    assert (one.teacher, one.size, one.rows, one.format) == ("tiny", "48", 40, "exact of float32")
    assert (two.teacher, two.size, two.rows, two.format) == ("tiny", "48", 5, "int8 of float32")
    assert one.bytes == sum(path.stat().st_size for path in one.folder.iterdir())
    assert (one.shards, one.damaged) == (1, 0)


def test_info_while_it_is_written_and_after_damage(tmp_path):
    with FeatureCache(tmp_path, say=lambda _: None) as cache:
        store = cache.store(KEY, SOURCES)
        store.put(rows(range(9)), features(rows(range(9))))
        assert info(tmp_path)[0].rows == 9
        (path,) = store.folder.glob("*.rows")
        with path.open("r+b") as file:
            file.seek(20)
            file.write(b"damage")
        store.get(rows(range(9)))
        assert (info(tmp_path)[0].rows, info(tmp_path)[0].damaged) == (8, 1)
    os.truncate(path, path.stat().st_size // 9 * 4 + 5)
    assert info(tmp_path)[0].rows == 3  # the damaged one was among the first four
    (store.folder / "about.json").write_text("{")
    assert (info(tmp_path)[0].teacher, info(tmp_path)[0].rows) == ("?", 0)


def test_the_table(tmp_path):
    filled(tmp_path, 40)
    written = io.StringIO()
    print_info(tmp_path, Console(file=written, width=160))
    head, row, last = written.getvalue().splitlines()
    assert head.split()[:2] == ["teacher", "size"]
    assert row.split()[:3] == ["tiny", "48", "40"]
    assert info(tmp_path)[0].folder.name in row
    assert "1 store," in last


def test_folders_that_are_no_cache(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        info(tmp_path / "nowhere")
    assert info(tmp_path) == []
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds no cache"):
        info(tmp_path)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_234_567, "1.23 MB"), (999_600, "1 MB")],
)
def test_bytes_are_shown_in_units(count, text):
    assert shown_bytes(count) == text
