import re
import tarfile
from itertools import chain, product

import numpy as np
import pytest
import torch
from loaded import assert_same, load
from PIL import Image
from tar_shards import number_of, png, write_shards, write_tar

from distill.data.braces import expand_braces
from distill.data.loader import Batch
from distill.data.shards import sample_index
from distill.data.source import BadSample
from distill.data.sources import check_source, open_source
from distill.data.tar_index import index_tar
from distill.scenes.dataset import Scenes
from students.errors import UserError

COUNTS = [5, 1, 9, 3, 7, 2, 4, 4, 6, 1, 8, 3, 2, 5, 5, 3, 6, 4, 2]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def joined(parts):
    return [
        Batch(
            torch.cat([part.pixels for part in step]),
            torch.cat([part.draws for part in step]),
            torch.cat([part.positions for part in step]),
            torch.cat([part.samples for part in step]),
            list(chain.from_iterable(part.names for part in step)),
            list(chain.from_iterable(part.bad for part in step)),
        )
        for step in zip(*parts, strict=True)
    ]


def damage(folder):
    """The third shard breaks off within its fourth image of nine."""
    path = folder / "002.tar"
    path.write_bytes(path.read_bytes()[: 3 * 2048 + 540])


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(("workers", "world"), list(product([0, 1, 3], [1, 2])))
def test_workers_and_ranks_change_nothing(tmp_path, monkeypatch, workers, world, kept):
    pattern = write_shards(tmp_path / "data", COUNTS)
    damage(tmp_path / "data")
    changes = {"policy": "eupe", "steps": 16}

    def sources():
        return {
            "tars": (open_source(f"webdataset:{pattern}"), 3.0),
            "scenes": (open_source("scenes:count=6,size=16"), 1.0),
        }

    whole = load(sources(), **changes)
    if not kept:
        monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "another"))
    parts = [
        load(sources(), rank=rank, world=world, workers=workers, **changes) for rank in range(world)
    ]
    assert_same(whole, joined(parts))
    assert any(batch.bad for batch in whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_to_start_in_the_middle_is_to_run_through(tmp_path, monkeypatch, workers):
    pattern = write_shards(tmp_path / "data", COUNTS)
    whole = load({"tars": (open_source(f"webdataset:{pattern}"), 1.0)}, steps=30)
    for first in (3, 17, 29):  # 80 samples: 6.7 steps an epoch
        monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / f"cold-{first}"))
        source = open_source(f"webdataset:{pattern}")
        rest = load({"tars": (source, 1.0)}, first_step=first, steps=30 - first, workers=workers)
        assert_same(whole[first:], rest)


def test_each_image_comes_once_an_epoch_with_its_own_name(tmp_path):
    pattern = write_shards(tmp_path / "data", COUNTS)
    total = sum(COUNTS)
    got = load({"tars": (open_source(f"webdataset:{pattern}"), 1.0)}, batch_size=10, steps=80)
    numbers = [number_of(image) for batch in got for image in batch.pixels]
    names = [name for batch in got for name in batch.names]
    shard_of = np.repeat(np.arange(len(COUNTS)), COUNTS)
    assert names == [f"tars/{shard_of[n]:03d}.tar/{n:05d}.png" for n in numbers]
    often = np.bincount(numbers, minlength=total)
    assert often.min() >= 5  # ten epochs of 80: lanes of unequal shards are never far apart
    assert often.max() <= 15
    assert often.mean() == 10


def test_a_homogeneous_source_of_shards(tmp_path):
    pattern = write_shards(tmp_path / "data", COUNTS)
    sources = {
        "scenes": (open_source("scenes:count=40,size=16"), 0.9),
        "tars": (open_source(f"webdataset:{pattern}"), 0.1),
    }
    got = load(sources, batch_size=4, steps=256, homogeneous=["tars"])
    kinds = [{name.split("/")[0] for name in batch.names} for batch in got]
    assert kinds.count({"tars"}) == 26
    assert kinds.count({"scenes"}) == 230
    for step in (0, 100, 255):
        assert_same(
            [got[step]], load(sources, batch_size=4, first_step=step, steps=1, homogeneous=["tars"])
        )
    with pytest.raises(UserError, match="did you mean 'tars'"):
        load(sources, homogeneous=["tar"])


def test_what_is_taken_of_a_tar(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(
        path,
        [
            ("dir/b.left.PNG", png(1)),
            ("dir/b.right.png", png(2)),
            ("dir/b.json", b"{}"),
            ("c.txt", b"text"),
            ("c.jpg", png(3)),
            ("._d.jpg", b"resource fork"),
            (".hidden/e.webp", png(4)),
            ("noext", png(5)),
            ("x" * 150 + "/" + "ü" * 60 + ".png", png(6)),
            ("b.png", png(7)),
        ],
    )
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "b.png"
        tar.addfile(link)
    source = open_source(f"webdataset:{path}")
    index = index_tar(path)
    assert [number_of(source.read(i)) for i in range(len(index))] == [1, 3, 4, 6, 7]
    assert source.name(0) == "a.tar/dir/b.left.PNG"
    assert source.name(3).startswith("a.tar/" + "x" * 150 + "/ü")
    with tarfile.open(path) as tar:  # offsets, by tarfile's own hand
        assert path.read_bytes()[index["offset"][0] :].startswith(
            tar.extractfile("dir/b.left.PNG").read()
        )


@pytest.mark.parametrize(
    ("change", "images", "words"),
    [
        (lambda d: d[: 1024 + 512 + 40], 1, "1 images before that"),  # within the second image
        (lambda d: d[:1024], 1, "without the mark of a tar's end"),  # between two images
        (lambda d: d[: 1024 + 100], 1, "without the mark"),  # within a header
        (lambda d: d[:1024] + b"junk" * 128 + d[1536:], 1, "without the mark"),
        (lambda d: b"<html>404</html>" * 200, 0, "no tar file"),
        (lambda d: b"", 0, "no tar file: empty file"),
        (lambda d: d[-1024:], 0, "no image in the tar file"),  # only the mark of the end
        (lambda d: d, 3, None),
        (lambda d: d[: 3 * 1024 + 1024], 3, None),  # as long as it must be, without padding
    ],
)
def test_damage_is_one_more_sample_that_is_bad(tmp_path, change, images, words):
    path = tmp_path / "a.tar"
    write_tar(path, [(f"{i}.png", png(i)) for i in range(3)])
    assert len(png(0)) <= 512
    path.write_bytes(change(path.read_bytes()))
    index = index_tar(path)
    assert len(index) == images + (words is not None)
    write_tar(tmp_path / "0.tar", [("x.png", png(9))])
    source = open_source(f"webdataset:{tmp_path}/{{0,a}}.tar")
    read = [number_of(source.read(int(sample_index(1, i)))) for i in range(images)]
    assert read == list(range(images))
    if words:
        with pytest.raises(BadSample) as caught:
            source.read(int(sample_index(1, images)))
        assert caught.value.name == "a.tar"
        assert words in caught.value.reason
        assert "\n" not in str(caught.value)


def test_damage_is_reported_once_an_epoch_and_replaced(tmp_path):
    pattern = write_shards(tmp_path / "data", [4, 4, 9])
    damage(tmp_path / "data")
    got = load({"tars": (open_source(f"webdataset:{pattern}"), 1.0)}, batch_size=12, steps=20)
    bad = [entry for batch in got for entry in batch.bad]
    assert {name for name, _ in bad} == {"tars/002.tar"}
    assert "3 images before that" in bad[0][1]
    assert 18 <= len(bad) <= 30  # 240 samples: 20 epochs of 12, and now and then as a replacement
    numbers = [number_of(image) for batch in got for image in batch.pixels]
    assert set(numbers) == set(range(11))


def test_members_that_are_no_images_and_too_large_ones(tmp_path):
    write_tar(
        tmp_path / "a.tar",
        [("a.jpg", b"text"), ("b.jpg", b""), ("c.png", png(3, (40, 40))), ("d.png", png(4))],
    )
    source = open_source(f"webdataset:{tmp_path}/a.tar", max_pixels=1000)
    for i, name in enumerate(("a.jpg", "b.jpg", "c.png")):
        with pytest.raises(BadSample) as caught:
            source.read(i)
        assert caught.value.name == f"a.tar/{name}"
    assert "1600" in caught.value.reason or "40 x 40" in caught.value.reason
    assert number_of(source.read(3)) == 4


def test_a_shard_that_is_cut_while_it_is_open(tmp_path):
    pattern = write_shards(tmp_path / "data", [4])
    source = open_source(f"webdataset:{pattern}")
    source.read(0)
    path = tmp_path / "data/000.tar"
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(BadSample, match="shorter"):
        source.read(3)


def test_a_changed_tar_is_indexed_anew(tmp_path):
    pattern = write_shards(tmp_path / "data", [4])
    assert (
        open_source(f"webdataset:{pattern}").cache.count(
            open_source(f"webdataset:{pattern}").shards[0]
        )
        == 4
    )
    write_shards(tmp_path / "data", [6])
    source = open_source(f"webdataset:{pattern}")
    assert source.counts.tolist() == [-1]
    source.count([0])
    assert source.counts.tolist() == [6]
    assert open_source(f"webdataset:{pattern}").counts.tolist() == [6]  # remembered


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("{a,b}.tar", ["a.tar", "b.tar"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{08..11}", ["08", "09", "10", "11"]),
        ("{000..002}", ["000", "001", "002"]),
        ("x{0..1}{a,}y", ["x0ay", "x0y", "x1ay", "x1y"]),
        ("{3..3}", ["3"]),
    ],
)
def test_braces(pattern, names):
    assert expand_braces(pattern) == names


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("a{0..", "'{' without '}'"),
        ("a}", "'}' without '{'"),
        ("{a,{b,c}}", "within a brace"),
        ("{}", "neither a range"),
        ("{a}", "neither a range"),
        ("{0..x}", "neither a range"),
        ("{0...3}", "neither a range"),
        ("{5..3}", "counts down: write {3..5}"),
        ("{0..99999}{0..99999}", "more than"),
    ],
)
def test_wrong_braces(pattern, words, tmp_path):
    with pytest.raises(ValueError, match=re.escape(words)):
        expand_braces(pattern)
    problem = check_source(f"webdataset:{tmp_path}/{pattern}.tar")
    assert words in problem
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("webdatset:/a.tar", ["'webdatset'", "did you mean 'webdataset'"]),
        ("webdataset:", ["needs tar files", "{00000..00123}"]),
        ("webdataset:pipe:", ["needs tar files"]),
        ("webdataset:/no/such/{000..002}.tar", ["/no/such/000.tar", "3 of 3"]),
        ("webdataset:s3://user:secret@bucket/a.tar", ["s3://", "pipe:"]),
        ("webdataset:http:///a.tar", ["names no server"]),
        ("webdataset:/a/b.tar.gz", ["compressed", "unpack"]),
        ("webdataset:https://h/b.tgz?token=secret", ["compressed"]),
        ("webdataset:pipe:cat secret.tar", ["allow_pipe: true"]),
    ],
)
def test_a_wrong_source_is_one_clear_line(spec, words):
    problem = check_source(spec)
    assert problem is not None
    assert "\n" not in problem
    assert "secret" not in problem
    for word in words:
        assert word in problem
    with pytest.raises(UserError) as caught:
        open_source(spec)
    assert str(caught.value) == problem


def test_the_first_missing_shard_is_named(tmp_path):
    pattern = write_shards(tmp_path, [1, 1, 1, 1])
    assert check_source(f"webdataset:{pattern}") is None
    (tmp_path / "002.tar").unlink()
    (tmp_path / "003.tar").unlink()
    problem = check_source(f"webdataset:{pattern}")
    assert "002.tar does not exist (2 of 4" in problem
    (tmp_path / "002.tar").mkdir()
    assert "002.tar is a folder" in check_source(f"webdataset:{pattern}")


def test_an_empty_shard_is_said_at_once(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.txt", b"text")])
    assert "no image in the tar file" in check_source(f"webdataset:{tmp_path}/a.tar")
    (tmp_path / "a.tar").write_text("text")
    assert "no tar file" in check_source(f"webdataset:{tmp_path}/a.tar")


def test_pixels_are_those_of_the_file(tmp_path):
    scene = Scenes(1, 48, 0).images[0].transpose(1, 2, 0)
    Image.fromarray(scene).save(tmp_path / "a.png")
    write_tar(tmp_path / "a.tar", [("a.png", (tmp_path / "a.png").read_bytes())])
    got = open_source(f"webdataset:{tmp_path}/a.tar").read(0)
    assert np.array_equal(got.permute(1, 2, 0).numpy(), scene)
