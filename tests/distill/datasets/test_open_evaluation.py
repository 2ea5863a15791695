"""Specs, layouts and what is said of those that are wrong; names in little memory; identity."""

import os
import pickle
import re
import tracemalloc
from pathlib import Path

import pytest
from layouts import (
    write_ade20k,
    write_class_folders,
    write_coco,
    write_imagenet,
    write_instances,
    write_masks,
    write_oxford,
    write_spair,
)
from reading import names, refused

from distill.datasets import LAYOUTS, open_evaluation
from distill.datasets.files import Names, listed

DOCS = Path(__file__).parents[3] / "docs" / "datasets.md"


def test_what_is_no_layout():
    assert "does not say its layout" in refused("/data/imagenet")
    assert "LAYOUT:PATH" in refused("")
    assert refused("imagnet:/data").endswith("(did you mean 'imagenet'?)")


def test_a_folder_that_is_not_there_and_its_nearest_neighbour(tmp_path):
    write_imagenet(tmp_path / "imagenet")
    message = refused(f"imagenet:{tmp_path}/imagenett")
    assert message.endswith(f"'{tmp_path}/imagenett' does not exist (did you mean 'imagenet'?)")
    # The part of the path that is wrong is what is compared.
    assert refused(f"imagenet:{tmp_path}/imagnet/a/b").endswith(
        f"there is no '{tmp_path}/imagnet' (did you mean 'imagenet'?)"
    )
    assert refused("imagenet:").endswith("needs the path of a folder")
    (tmp_path / "file").write_text("")
    assert refused(f"imagenet:{tmp_path}/file").endswith("is no folder but a file")
    assert refused(f"captions:{tmp_path}").endswith("is no file but a folder")


def test_keys(tmp_path):
    write_masks(tmp_path)
    spec = f"masks:{tmp_path}"
    assert refused(f"{spec},clases=3").endswith("has no key 'clases' (did you mean 'classes'?)")
    assert refused(f"imagenet:{tmp_path},train=x").endswith("has no key 'train' (it has none)")
    assert refused(f"{spec},classes").endswith("'classes' is not key=value")
    assert refused(f"{spec},classes=3,classes=4").endswith("classes= is there twice")
    assert refused(f"{spec},classes=").endswith("classes= has no value")
    assert "classes=x must be a whole number of at least 1" in refused(f"{spec},classes=x")
    assert "ignore=-1 must be a whole number of at least 0" in refused(f"{spec},ignore=-1")
    assert "scale=0 must be a number above 0" in refused(f"depth:{tmp_path},scale=0")
    assert "far=nan must be a number above 0" in refused(f"depth:{tmp_path},far=nan")
    assert "'many' is not key=value" in refused("scenes:many")
    assert "size=4 must be a whole number of at least 8" in refused("scenes:size=4")


def test_commas_belong_to_a_path_unless_a_key_follows(tmp_path):
    folder = tmp_path / "tables, chairs"
    write_masks(folder)
    data = open_evaluation(f"masks:{folder},classes=7,ignore=255")
    assert len(data.parts["segmentation"].classes) == 7


@pytest.mark.parametrize(
    ("write", "layout", "parent"),
    [
        (write_imagenet, "imagenet", "train/"),
        (write_ade20k, "ade20k", "images/"),
        (write_spair, "spair", "PairAnnotation/test"),
        (write_coco, "coco-captions", "annotations/captions_val2017.json"),
        (write_oxford, "oxford", "gnd_roxford5k.pkl"),
    ],
)
def test_the_folder_above_is_not_it(tmp_path, write, layout, parent):
    (tmp_path / "inner").mkdir()
    write(tmp_path / "inner")
    message = refused(f"{layout}:{tmp_path}")
    assert f"no {parent} in '{tmp_path}': expected " in message
    assert f"there are inner/; did you mean '{tmp_path}/inner'?" in message
    assert open_evaluation(f"{layout}:{tmp_path}/inner").name == "inner"


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name not in ("scenes",)])
def test_an_empty_folder_is_no_data_set(tmp_path, layout):
    at = tmp_path / "empty.csv"
    if layout in ("captions", "karpathy"):
        at.write_text("")
    else:
        at.mkdir()
    message = refused(f"{layout}:{at}")
    assert str(at) in message
    assert message.startswith((f"{layout}: ", str(at)))


def test_identity_changes_with_every_file_and_nothing_else(tmp_path):
    write_masks(tmp_path / "a")
    spec = f"masks:{tmp_path}/a"
    first = open_evaluation(spec).identity
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert open_evaluation(spec).identity == first
    (tmp_path / "a").rename(tmp_path / "b")
    spec = f"masks:{tmp_path}/b"
    assert open_evaluation(spec).identity == first
    seen = {first, open_evaluation(f"{spec},ignore=0").identity}
    files = sorted((tmp_path / "b").rglob("*.png"))
    assert len(files) == 8
    for number, file in enumerate(files, 1):
        os.utime(file, ns=(0, number))
        seen.add(open_evaluation(spec).identity)
    (tmp_path / "b/classes.txt").write_text("a\nb\nc\nd\ne\n")
    seen.add(open_evaluation(spec).identity)
    for folder in ("images", "masks"):
        at = tmp_path / "b" / folder / "train"
        (at / "p1.png").rename(at / "p2.png")
    seen.add(open_evaluation(spec).identity)
    with (tmp_path / "b/images/val/p1.png").open("ab") as file:
        file.write(b"x")
    os.utime(tmp_path / "b/images/val/p1.png", ns=(0, 4))
    seen.add(open_evaluation(spec).identity)
    assert len(seen) == 2 + 8 + 3


def test_identity_of_lists_that_say_other_things(tmp_path):
    write_coco(tmp_path)
    first = open_evaluation(f"coco-captions:{tmp_path}").identity
    file = tmp_path / "annotations/captions_val2017.json"
    file.write_text(file.read_text().replace("sentence 0", "sentence A"))
    assert open_evaluation(f"coco-captions:{tmp_path}").identity != first


def test_what_does_not_count_in_a_folder(tmp_path):
    written = write_class_folders(tmp_path, ("a", "b"))
    for name in ("train/a/._x.jpg", "train/a/notes.txt", "train/.git/x.jpg", "val/c/x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    part = open_evaluation(f"classes:{tmp_path}").parts["classification"]
    assert names(part.train.pictures) == [name for name, *_ in written.train]


def test_names_sort_as_whole_paths(tmp_path):
    for name in ("a-b/x.png", "a/z.png", "a/b/c.PNG", "a.png", "é/1.png", "Z.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = [entry.name for entry in listed(tmp_path, (".png",))]
    assert found == sorted(["a-b/x.png", "a/z.png", "a/b/c.PNG", "a.png", "é/1.png", "Z.png"])


def test_a_link_to_nothing_is_named(tmp_path):
    write_class_folders(tmp_path, ("a",))
    (tmp_path / "train/a/q.jpg").symlink_to(tmp_path / "gone.jpg")
    message = refused(f"classes:{tmp_path}")
    assert message == f"cannot read '{tmp_path}/train/a/q.jpg': No such file or directory"


def test_a_link_back_is_passed_over(tmp_path):
    written = write_class_folders(tmp_path, ("a",))
    (tmp_path / "train/a/up").symlink_to(tmp_path / "train/a")
    (tmp_path / "train/a/round").symlink_to(tmp_path / "train")
    found = names(open_evaluation(f"classes:{tmp_path}").parts["classification"].train.pictures)
    assert found == [name for name, *_ in written.train]


def test_names_take_little_more_than_their_bytes():
    number = 200_000
    tracemalloc.start()
    kept = Names(f"train/n{i % 1000:08}/n{i % 1000:08}_{i}.JPEG" for i in range(number))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # 36 bytes of text and 8 of an offset: 1.28 million paths take 60 MB.
    assert held < 50 * number
    assert peak < 150 * number
    assert len(kept) == number
    assert kept[0] == "train/n00000000/n00000000_0.JPEG"
    assert kept[123_456] == "train/n00000456/n00000456_123456.JPEG"
    assert kept[-1] == kept[number - 1] != kept[number - 2]
    with pytest.raises(IndexError):
        kept[number]


def test_names_of_any_bytes(tmp_path):
    odd = os.fsdecode(b"\xff\xfe.png")
    assert list(Names(["", "ü", odd])) == ["", "ü", odd]
    assert list(Names([])) == []


def test_a_data_set_goes_to_other_processes(tmp_path):
    written = write_instances(tmp_path)
    test = pickle.loads(pickle.dumps(open_evaluation(f"instances:{tmp_path}"))).parts["instances"]
    assert names(test.test.pictures) == [name for name, _ in written.test]
    assert int(test.test.truth(1).max()) == 302
    scenes = pickle.loads(pickle.dumps(open_evaluation("scenes:size=16,train=8,test=8")))
    assert scenes.pictures.read(0).shape == (3, 16, 16)


def test_the_page_names_every_layout_and_key():
    page = DOCS.read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    first = [re.match(r"\| `([^`]+)`", row)[1] for row in rows]
    assert [spec for spec in first if ":" in spec] == [
        layout.example for layout in LAYOUTS.values()
    ]
