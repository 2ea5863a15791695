"""`imagenet:` and `classes:`."""

import pytest
import torch
from layouts import WNIDS, colour_of, picture, write_class_folders, write_imagenet
from reading import assert_picture, names, refused

from distill.data.source import BadSample
from distill.datasets import open_evaluation


def assert_split(labelled, written):
    assert names(labelled.pictures) == [name for name, *_ in written]
    assert labelled.labels.dtype == torch.int64
    assert labelled.labels.tolist() == [label for _, label, *_ in written]
    for i, (_, _, size, colour) in enumerate(written):
        assert_picture(labelled.pictures.read(i), size, colour)


def test_imagenet(tmp_path):
    written = write_imagenet(tmp_path)
    data = open_evaluation(f"imagenet:{tmp_path}")
    assert (data.layout, set(data.parts)) == ("imagenet", {"classification"})
    part = data.parts["classification"]
    assert part.classes == ("tench", "crane", "yawl") == tuple(written.classes)
    assert_split(part.train, written.train)
    assert_split(part.test, written.test)
    assert data.pictures is part.test.pictures


def test_names_by_whatever_file_lies_there(tmp_path):
    write_imagenet(tmp_path)
    (tmp_path / "LOC_synset_mapping.txt").unlink()
    spec = f"imagenet:{tmp_path}"
    assert open_evaluation(spec).parts["classification"].classes == tuple(WNIDS)
    # In any order, and with classes that are not there.
    lines = ["n00000000 nothing", *reversed([f"{w} {n}" for w, n in WNIDS.items()])]
    (tmp_path / "classes.txt").write_text("\n".join(lines))
    assert open_evaluation(spec).parts["classification"].classes == ("tench", "crane", "yawl")
    (tmp_path / "classes.txt").write_text(lines[1] + "\n")
    message = refused(spec)
    assert f"{tmp_path}/classes.txt has no name for 2 classes: n01440764, n02012849" in message


def test_a_flat_validation_folder(tmp_path):
    write_class_folders(tmp_path, tuple(WNIDS), ("train", "other"))
    for n in (1, 2, 3, 4):
        picture(tmp_path / f"val/ILSVRC2012_val_{n:08}.JPEG", (10, 10), colour_of(n))
    message = refused(f"imagenet:{tmp_path}")
    assert f"no folder of a class in '{tmp_path}/val': expected train/WNID/*.JPEG" in message
    assert "there are 4 images of no class: ILSVRC2012_val_00000001.JPEG" in message.replace(
        "val/ILSVRC", "ILSVRC"
    )
    assert message.endswith("move each into the folder of its class")


@pytest.mark.parametrize(
    "splits", [("train", "test"), ("training", "validation"), ("train", "val")]
)
def test_classes_in_folders_of_usual_names(tmp_path, splits):
    written = write_class_folders(tmp_path, ("cat", "dog", "eel"), splits)
    part = open_evaluation(f"classes:{tmp_path}").parts["classification"]
    assert part.classes == ("cat", "dog", "eel")
    assert_split(part.train, written.train)
    assert_split(part.test, written.test)


def test_classes_in_folders_of_own_names(tmp_path):
    written = write_class_folders(tmp_path, ("cat", "dog"), ("seen", "unseen"))
    spec = f"classes:{tmp_path}"
    message = refused(spec)
    assert f"no train/ or training/ in '{tmp_path}'" in message
    assert message.endswith("there are seen/, unseen/")
    assert "no sen/ in" in refused(f"{spec},train=sen,test=unseen")
    part = open_evaluation(f"{spec},train=seen,test=unseen").parts["classification"]
    assert_split(part.test, written.test)


def test_pictures_of_a_class_at_any_depth(tmp_path):
    write_class_folders(tmp_path, ("cat", "dog"))
    picture(tmp_path / "train/dog/more/x.png", (5, 6), colour_of(9))
    part = open_evaluation(f"classes:{tmp_path}").parts["classification"]
    assert names(part.train.pictures)[-1] == "train/dog/more/x.png"
    assert part.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1]


def test_classes_that_differ(tmp_path):
    write_class_folders(tmp_path, ("a", "b", "c", "d", "e"), ("train", "spare"))
    write_class_folders(tmp_path, ("a",), ("spare", "test"))
    message = refused(f"classes:{tmp_path}")
    assert message.endswith(
        "the classes of train/ and test/ differ: test/ has no folder for 4 classes of train/: "
        "b, c, d and 1 more"
    )
    write_class_folders(tmp_path, ("a", "b", "c", "d", "e", "f"), ("spare", "test"))
    assert "train/ has no folder for 1 class of test/: f" in refused(f"classes:{tmp_path}")


def test_a_class_without_pictures_and_a_split_without_classes(tmp_path):
    write_class_folders(tmp_path, ("a", "b"))
    for file in (tmp_path / "test/b").iterdir():
        file.unlink()
    assert refused(f"classes:{tmp_path}") == f"no image in '{tmp_path}/test/b'"
    (tmp_path / "val").mkdir()
    message = refused(f"classes:{tmp_path},test=val")
    assert f"no folder of a class in '{tmp_path}/val'" in message
    assert message.endswith("there is nothing")


def test_a_picture_that_cannot_be_read(tmp_path):
    write_class_folders(tmp_path, ("a",))
    (tmp_path / "test/a/a_1.jpg").write_bytes(b"no picture")
    (tmp_path / "train/a/a_0.jpg").chmod(0)
    pictures = open_evaluation(f"classes:{tmp_path}").pictures
    with pytest.raises(BadSample) as bad:
        pictures.read(1)
    assert bad.value.name == "test/a/a_1.jpg"
    assert pictures.read(0).shape == (3, 20, 24)
