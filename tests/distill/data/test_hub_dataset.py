import sys

import loaded
import pytest
import torch
from PIL import Image
from tar_shards import number_of, png

from distill.data.shards import sample_index
from distill.data.source import BadSample
from distill.data.sources import check_source, count_samples, open_source
from students.errors import UserError

datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()

FILES = (4, 7, 1, 5, 6)


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))


def rows(numbers, column="image", images=True):
    values = [None if n is None else {"bytes": png(n), "path": f"{n}.png"} for n in numbers]
    kind = (
        datasets.Image()
        if images
        else {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    )
    features = datasets.Features({column: kind, "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict(
        {column: values, "label": list(range(len(values)))}, features=features
    )


@pytest.fixture
def parquet(tmp_path):
    """A folder of parquet files of 4, 7, 1, 5 and 6 rows, and a test split of 2."""
    folder, first = tmp_path / "parquet", 0
    (folder / "data").mkdir(parents=True)
    for i, count in enumerate(FILES):
        part = rows(range(first, first + count))
        part.to_parquet(str(folder / f"data/train-{i:05d}-of-{len(FILES):05d}.parquet"))
        first += count
    rows([100, 101]).to_parquet(str(folder / "data/test-00000-of-00001.parquet"))
    return folder


@pytest.fixture
def saved(tmp_path):
    """A folder of save_to_disk with splits of 9 and 3 rows."""
    folder = tmp_path / "saved"
    parts = {"train": rows(range(9)), "test": rows(range(50, 53))}
    datasets.DatasetDict(parts).save_to_disk(str(folder))
    return folder


def load(source, **changes):
    settings = {"batch_size": 10, "steps": 7} | changes
    return loaded.load({"hub": (source, 1.0)}, **settings)


def numbers(loaded):
    return [number_of(image) for batch in loaded for image in batch.pixels]


def test_a_saved_folder(saved):
    source = open_source(f"hf:{saved}")
    assert [number_of(source.read(i)) for i in range(len(source))] == list(range(9))
    assert source.name(3) == "row 3"
    assert count_samples(f"hf:{saved}") == 9
    assert check_source(f"hf:{saved}") is None
    test = open_source(f"hf: {saved}, split=test, column=image")
    assert [number_of(test.read(i)) for i in range(len(test))] == [50, 51, 52]


def test_a_folder_of_parquet_files(parquet):
    assert check_source(f"hf:{parquet}") is None
    assert count_samples(f"hf:{parquet}") is None
    source = open_source(f"hf:{parquet},split=train")
    assert [number_of(source.read(i)) for i in range(len(source))] == list(range(sum(FILES)))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_streaming_shows_what_the_local_rows_show_in_another_order(parquet, workers):
    assert check_source(f"hf:{parquet},streaming=true") is None
    source = open_source(f"hf:{parquet},streaming=true")
    assert len(source.shards) == len(FILES)
    got = load(source, policy="centre", steps=23, workers=workers)
    assert source.counts.max() == -1 or workers == 0  # opened by the workers
    assert len(set(numbers(got))) == sum(FILES)
    assert {name.rsplit("/", 2)[-2] for name in got[0].names} <= {f"0000{i}" for i in range(5)}
    source.count(range(5))
    assert source.counts.tolist() == list(FILES)
    everything = [
        number_of(source.read(int(sample_index(s, p)))) for s in range(5) for p in range(FILES[s])
    ]
    assert everything == list(range(sum(FILES)))


def test_workers_and_a_later_start_change_nothing(parquet, tmp_path, monkeypatch):
    whole = load(open_source(f"hf:{parquet},streaming=true"))
    for workers, first in ((1, 0), (3, 0), (2, 4)):
        monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / f"cold-{workers}"))
        source = open_source(f"hf:{parquet},streaming=true")
        again = load(source, workers=workers, first_step=first, steps=7 - first)
        for a, b in zip(whole[first:], again, strict=True):
            assert torch.equal(a.pixels, b.pixels)
            assert a.names == b.names


def test_the_rows_lie_in_workers_too(saved):
    one, two = (load(open_source(f"hf:{saved}"), workers=w) for w in (0, 2))
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_what_an_image_may_be(tmp_path, streaming):
    """A row without one, bytes that are none, a plain struct, and a path."""
    folder = tmp_path / "odd"
    folder.mkdir()
    Image.new("RGB", (9, 9), (0, 77, 7)).save(tmp_path / "77.png")
    values = [
        None,
        {"bytes": b"text", "path": None},
        {"bytes": png(5), "path": "x.unknown"},
        {"bytes": None, "path": str(tmp_path / "77.png")},
        {"bytes": None, "path": str(tmp_path / "gone.png")},
    ]
    kind = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    table = datasets.Dataset.from_dict(
        {"image": values}, features=datasets.Features({"image": kind})
    )
    table.to_parquet(str(folder / "train.parquet"))
    source = open_source(f"hf:{folder},streaming={streaming}")
    assert number_of(source.read(2)) == 5
    assert number_of(source.read(3)) == 77
    for bad in (0, 1, 4):
        with pytest.raises(BadSample) as caught:
            source.read(bad)
        assert "\n" not in str(caught.value)


def test_the_column(tmp_path):
    rows([1, 2], column="photo").save_to_disk(str(tmp_path / "a"))
    assert number_of(open_source(f"hf:{tmp_path}/a").read(1)) == 2  # the only one of images
    assert "photo, label" in check_source(f"hf:{tmp_path}/a,column=phot")
    assert "did you mean 'photo'" in check_source(f"hf:{tmp_path}/a,column=phot")
    rows([1, 2], column="x", images=False).save_to_disk(str(tmp_path / "b"))
    assert "no column 'image'" in check_source(f"hf:{tmp_path}/b")
    assert check_source(f"hf:{tmp_path}/b,column=x") is None
    problem = check_source(f"hf:{tmp_path}/b,column=label")
    assert "'label' is no column of images, it holds int64" in problem
    with pytest.raises(UserError, match="'label' is no column of images"):
        open_source(f"hf:{tmp_path}/b,column=label")


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ("", ["begins with the name"]),
        ("split=train", ["begins with the name"]),
        ("SAVED,splt=test", ["'splt'", "did you mean 'split'"]),
        ("SAVED,split", ["key=value"]),
        ("SAVED,streaming=yes", ["true or false"]),
        ("SAVED,streaming=true", ["save_to_disk", "leave out"]),
        ("SAVED,config=x", ["leave out config="]),
        ("SAVED,split=tset", ["no split 'tset'", "did you mean 'test'", "train, test"]),
        ("PARQUET,split=trian,streaming=true", ["did you mean 'train'"]),
        ("PARQUET,split=trian", ["did you mean 'train'", "test"]),
        ("PARQUET,column=imag", ["no column 'imag'", "did you mean 'image'", "image, label"]),
        ("PARQUET,config=nine", ["'nine'", "default"]),
        ("/no/such/folder", ["'/no/such/folder' does not exist"]),
        ("EMPTY", ["no rows"]),
        ("NOTHING", ["NOTHING"]),
    ],
)
def test_a_wrong_source_is_one_clear_line(tmp_path, saved, parquet, rest, words):
    (tmp_path / "NOTHING").mkdir()
    rows([]).save_to_disk(str(tmp_path / "EMPTY"))
    for name, folder in (("SAVED", saved), ("PARQUET", parquet)):
        rest = rest.replace(name, str(folder))
    for name in ("EMPTY", "NOTHING"):
        rest = rest.replace(name, str(tmp_path / name))
    problem = check_source(f"hf:{rest}")
    assert problem is not None
    assert "\n" not in problem
    for word in words:
        assert word in problem
    with pytest.raises(UserError):
        open_source(f"hf:{rest}")


def test_an_empty_parquet_file(tmp_path):
    (tmp_path / "empty").mkdir()
    rows([]).to_parquet(str(tmp_path / "empty/train.parquet"))
    assert "no rows" in check_source(f"hf:{tmp_path}/empty")
    assert "no rows" in check_source(f"hf:{tmp_path}/empty,streaming=true")
    with pytest.raises(UserError, match="no rows"):
        open_source(f"hf:{tmp_path}/empty")


@pytest.mark.parametrize("streaming", ["false", "true"])
def test_columns_of_bytes_and_of_paths(tmp_path, streaming):
    (tmp_path / "plain").mkdir()
    Image.new("RGB", (9, 9), (0, 77, 7)).save(tmp_path / "77.png")
    table = datasets.Dataset.from_dict({"raw": [png(3)], "file": [str(tmp_path / "77.png")]})
    table.to_parquet(str(tmp_path / "plain/train.parquet"))
    for column, number in (("raw", 3), ("file", 77)):
        source = open_source(f"hf:{tmp_path}/plain,column={column},streaming={streaming}")
        assert number_of(source.read(0)) == number


def test_of_the_hub_only_what_is_written_is_checked():
    assert check_source("hf:someone/something,split=train,column=image,streaming=true") is None


def test_without_the_package_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'distill-workbench[data]'" in check_source("hf:someone/something")
    with pytest.raises(UserError, match="not installed"):
        open_source("hf:someone/something")
