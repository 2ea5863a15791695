"""Folders and lists of images: what is listed, in which order, and what it costs to hold it."""

import gc
import multiprocessing
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distill.data import path_list
from distill.data.folder import FolderSource
from distill.data.path_list import PathList
from distill.data.source import BadSample
from students.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("DISTILL_CACHE", str(folder))
    return folder


def names(source):
    return [source.name(i) for i in range(len(source))]


def image(path, shade=7):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5, 3), shade, np.uint8)).save(path, "PNG")


def shade(source, index):
    return int(source.read(index)[0, 0, 0])


def test_a_folder_at_any_depth_sorted_by_path(tmp_path):
    given = "a-b/x.png a/b/c/d.PNG a/z.jpg a.bmp b.gif ä.tiff é/1.jfif Z.webp 0.jpeg q\n.tif"
    for number, name in enumerate(given.split(" ")):
        image(tmp_path / "photos" / name, number)
    for name in ("notes.txt", ".hidden.jpg", ".git/x.jpg", "a/._z.jpg", "list.csv"):
        image(tmp_path / "photos" / name)
    source = FolderSource(str(tmp_path / "photos"))
    want = sorted(given.split(" "))
    assert names(source) == want
    assert [shade(source, i) for i in range(len(want))] == [given.split(" ").index(n) for n in want]
    assert FolderSource.count(str(tmp_path / "photos")) == len(want)


def test_each_folder_comes_once_whatever_links_lead_to_it(tmp_path):
    image(tmp_path / "photos/b/x.png")
    image(tmp_path / "elsewhere/y.png")
    (tmp_path / "photos/a").symlink_to(tmp_path / "photos/b")
    (tmp_path / "photos/b/up").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/round").symlink_to(tmp_path / "photos/round")
    (tmp_path / "photos/gone.png").symlink_to(tmp_path / "nowhere.png")
    source = FolderSource(str(tmp_path / "photos"))
    assert names(source) == ["a/x.png", "gone.png", "more/y.png"]
    with pytest.raises(BadSample, match=r"gone\.png: No such file"):
        source.read(1)


def test_a_name_that_is_no_text(tmp_path):
    folder = os.fsencode(tmp_path / "photos")
    image(tmp_path / "photos/x.png", 3)
    Path(os.fsdecode(folder + b"/x.png")).rename(os.fsdecode(folder + b"/\xff\xfe.png"))
    source = FolderSource(str(tmp_path / "photos"))
    assert os.fsencode(source.name(0)) == b"\xff\xfe.png"
    assert shade(source, 0) == 3


def test_a_list_in_its_order(tmp_path):
    image(tmp_path / "lists/b.png", 1)
    image(tmp_path / "lists/deep/a.txt", 2)  # no image by its ending, but listed
    image(tmp_path / "far/c c.png", 3)
    lines = ["", "# photographs", "b.png", "  deep/a.txt\t", str(tmp_path / "far/c c.png"), "b.png"]
    for start, end in ((b"", b"\n"), (b"\xef\xbb\xbf", b"\r\n")):
        listed = tmp_path / "lists/list.txt"
        listed.write_bytes(start + end.join(line.encode() for line in lines))
        source = FolderSource(str(listed))
        assert names(source) == ["b.png", "deep/a.txt", str(tmp_path / "far/c c.png"), "b.png"]
        assert [shade(source, i) for i in range(4)] == [1, 2, 3, 1]
        assert FolderSource.count(str(listed)) == 4


def test_a_listed_file_that_is_not_there_is_a_bad_sample_when_it_is_read(tmp_path):
    (tmp_path / "list.txt").write_text("gone.png\nze\0ro.png\n")
    source = FolderSource(str(tmp_path / "list.txt"))
    with pytest.raises(BadSample, match="No such file") as caught:
        source.read(0)
    assert caught.value.name == "gone.png"
    with pytest.raises(BadSample, match="null byte"):
        source.read(1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, ["does not exist", "text file that lists"]),
        (lambda path: path.write_text("\n# nothing\n\n"), ["names no image", "a path a line"]),
        (lambda path: path.write_bytes(b"PK\0\1\n"), ["no list of images", "not text"]),
        (os.mkfifo, ["no folder and no regular file"]),
        (lambda path: path.mkdir(), ["no image in the folder", "found nothing", ".webp"]),
        (lambda path: image(path / "a/b.txt"), ["no image in the folder", "found a"]),
    ],
)
def test_what_holds_no_images_is_one_clear_line(tmp_path, make, words):
    path = tmp_path / "given"
    make(path)
    problem = FolderSource.check(str(path))
    assert problem is not None
    assert "\n" not in problem
    for word in [str(path), *words]:
        assert word in problem
    for use in (FolderSource, FolderSource.count):
        with pytest.raises(UserError) as caught:
            use(str(path))
        assert str(caught.value) == problem


def test_an_image_is_no_list(tmp_path):
    image(tmp_path / "x.JPG")
    assert "an image by its name" in FolderSource.check(str(tmp_path / "x.JPG"))


def test_what_is_in_a_folder_without_images_is_named_in_short(tmp_path):
    for name in ("d.txt", "b.csv", "c.md", "a.json"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / name).touch()
    assert "found a.json, b.csv, c.md and 1 more" in FolderSource.check(str(tmp_path / "photos"))


def test_a_cache_folder_that_cannot_be_written_is_an_error(tmp_path, monkeypatch):
    image(tmp_path / "photos/x.png")
    (tmp_path / "file").touch()
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be kept.*DISTILL_CACHE") as caught:
        FolderSource(str(tmp_path / "photos"))
    assert "\n" not in str(caught.value)


def test_the_limit_on_pixels_is_the_sources(tmp_path):
    image(tmp_path / "photos/x.png")
    assert FolderSource(str(tmp_path / "photos"), max_pixels=20).read(0).shape == (3, 4, 5)
    with pytest.raises(BadSample, match="5 x 4 pixels, more than 19"):
        FolderSource(str(tmp_path / "photos"), max_pixels=19).read(0)


def test_a_listing_leaves_no_file_behind(tmp_path, cache):
    image(tmp_path / "photos/x.png")
    source = FolderSource(str(tmp_path / "photos"))
    assert list(cache.iterdir()) == []  # not even while it is there
    assert names(source) == ["x.png"]
    assert len(open_in(cache)) == 2
    del source
    gc.collect()
    assert open_in(cache) == []


def open_in(folder):
    """Files in `folder` that this process holds open, with a name or without."""
    links = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    return [link for link in links if link.startswith(str(folder))]


def test_forked_and_pickled_sources_are_the_same(tmp_path):
    for number in range(50):
        image(tmp_path / f"photos/{number}.png", number)
    source = FolderSource(str(tmp_path / "photos"), max_pixels=30)
    want = names(source)

    def read(answer, seed):
        order = list(range(50)) * 20
        random.Random(seed).shuffle(order)
        answer.put([i for i in order if source.name(i) != want[i]])

    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    workers = [context.Process(target=read, args=(answer, seed)) for seed in range(3)]
    for worker in workers:
        worker.start()
    assert [answer.get(timeout=60) for _ in workers] == [[], [], []]
    for worker in workers:
        worker.join()
    again = pickle.loads(pickle.dumps(source))
    assert (names(again), again.max_pixels) == (want, 30)


@pytest.mark.parametrize("count", [1, 6, 7, 8, 14, 100])
def test_paths_sorted_in_runs_are_sorted(tmp_path, monkeypatch, count):
    monkeypatch.setattr(path_list, "RUN", 7)
    monkeypatch.setattr(path_list, "_BATCH", 3)
    monkeypatch.setattr(path_list, "_READ", 5)
    draw = random.Random(0)
    paths = [bytes(draw.randrange(1, 256) for _ in range(draw.randrange(9))) for _ in range(count)]
    held = PathList(iter(paths), tmp_path, in_order=True)
    assert [held[i] for i in range(len(held))] == sorted(paths)
    held = PathList(iter(paths), tmp_path)
    assert [held[i] for i in range(len(held))] == paths
    for index in (-1, count):
        with pytest.raises(IndexError):
            held[index]


MEMORY = """
import resource, sys
from pathlib import Path
from distill.data.path_list import PathList

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

PathList((b"%d" % n for n in range(1000)), Path(sys.argv[1]), in_order=True)
before = peak()
count = 1_000_000  # 40 MB of names: as a list some 80 MB
held = PathList((b"%040d" % (n * 7919 % count) for n in range(count)), Path(sys.argv[1]), True)
assert held[123_456] == b"%040d" % 123_456
for n in range(0, count, 40):
    held[n * 7919 % count]
print(peak() - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_paths(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        check=True,
    )
    assert float(done.stdout) < 45  # MiB: a run that is sorted, and what is read of the others
