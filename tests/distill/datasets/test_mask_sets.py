"""`ade20k:`, `masks:` and `instances:`: maps to the pixel, and what is said of wrong ones."""

import struct
import zlib

import numpy as np
import pytest
import torch
from layouts import colour_of, picture, values, write_ade20k, write_instances, write_masks
from PIL import Image
from reading import assert_picture, names, refused, wrong

from distill.datasets import IGNORE, open_evaluation


def assert_maps(annotated, written, expected):
    assert names(annotated.pictures) == [name for name, _ in written]
    for i, (_, stored) in enumerate(written):
        truth = annotated.truth(i)
        assert truth.dtype == torch.int64
        assert truth.tolist() == [[expected(int(v)) for v in row] for row in stored]
        assert annotated.pictures.read(i).shape[1:] == truth.shape


def test_ade20k(tmp_path):
    written = write_ade20k(tmp_path)
    data = open_evaluation(f"ade20k:{tmp_path}")
    part = data.parts["segmentation"]
    assert part.classes == tuple(written.classes)
    for split, held in ((part.train, written.train), (part.test, written.test)):
        assert_maps(split, held, lambda value: IGNORE if value == 0 else value - 1)
    assert {0, 149} <= set(torch.cat([part.train.truth(i).flatten() for i in range(4)]).tolist())
    assert_picture(part.train.pictures.read(2), (32, 38), colour_of(2))
    assert len(data.pictures) == 3


def test_names_of_ade20k(tmp_path):
    write_ade20k(tmp_path)
    (tmp_path / "objectInfo150.txt").unlink()
    spec = f"ade20k:{tmp_path}"
    classes = open_evaluation(spec).parts["segmentation"].classes
    assert (len(classes), classes[0], classes[149]) == (150, "class 1", "class 150")
    lines = [f"{n},0.1,10,1,0,word{n};other" for n in range(1, 151)]
    (tmp_path / "objectInfo150.csv").write_text(
        "Idx,Ratio,Train,Val,Stuff,Name\n" + "\n".join(lines)
    )
    assert open_evaluation(spec).parts["segmentation"].classes[:2] == ("word1", "word2")
    (tmp_path / "objectInfo150.csv").write_text("Idx,Name\n1,wall\n")
    assert "expected a header and 150 lines" in refused(spec)


def test_a_value_that_is_no_class(tmp_path):
    write_ade20k(tmp_path)
    file = tmp_path / "annotations/validation/ADE_val_00000002.png"
    values(file, np.full((31, 39), 151, np.uint8))
    part = open_evaluation(f"ade20k:{tmp_path}").parts["segmentation"]
    part.test.truth(0)
    assert wrong(part.test.truth, 1) == (
        f"{file} has the value 151 (1209 pixels out of range): classes are 1 to 150, or 0 for "
        "nothing"
    )


def test_pictures_and_masks_that_do_not_pair(tmp_path):
    write_ade20k(tmp_path)
    for n in (1, 2, 3, 4):
        (tmp_path / f"annotations/training/ADE_train_{n:08}.png").rename(
            tmp_path / f"annotations/training/other_{n}.png"
        )
    message = refused(f"ade20k:{tmp_path}")
    assert "4 images without annotation: ADE_train_00000001.jpg, ADE_train_00000002.jpg" in message
    assert "ADE_train_00000003.jpg and 1 more; 4 annotations without image: other_1.png" in message
    write_masks(tmp_path / "m")
    (tmp_path / "m/images/val/p1.png").unlink()
    message = refused(f"masks:{tmp_path}/m")
    assert message.endswith("do not pair by name: 1 mask without image: p1.png")
    picture(tmp_path / "m/images/val/p0.jpg", (4, 4), colour_of(0))
    assert "p0.jpg and p0.png are named alike" in refused(f"masks:{tmp_path}/m")


def test_an_empty_split(tmp_path):
    write_ade20k(tmp_path)
    for folder in ("images", "annotations"):
        for file in (tmp_path / folder / "validation").iterdir():
            file.unlink()
    message = refused(f"ade20k:{tmp_path}")
    assert f"no image in '{tmp_path}/images/validation'" in message
    (tmp_path / "images/validation").rmdir()
    assert "no images/validation/ in" in refused(f"ade20k:{tmp_path}")


@pytest.mark.parametrize("folder", ["masks", "annotations", "labels"])
def test_masks(tmp_path, folder):
    written = write_masks(tmp_path, masks=folder)
    part = open_evaluation(f"masks:{tmp_path}").parts["segmentation"]
    assert part.classes == tuple(written.classes)
    for split, held in ((part.train, written.train), (part.test, written.test)):
        assert_maps(split, held, lambda value: IGNORE if value == 255 else value)


def test_masks_of_sixteen_bits(tmp_path):
    written = write_masks(tmp_path, classes=700, dtype=np.uint16)
    part = open_evaluation(f"masks:{tmp_path}").parts["segmentation"]
    assert len(part.classes) == 700
    assert_maps(part.train, written.train, lambda value: IGNORE if value == 255 else value)
    part = open_evaluation(f"masks:{tmp_path},ignore=none").parts["segmentation"]
    assert_maps(part.train, written.train, lambda value: value)
    part = open_evaluation(f"masks:{tmp_path},ignore=699").parts["segmentation"]
    assert len(part.classes) == 256


def test_classes_are_counted_only_if_nobody_says(tmp_path):
    write_masks(tmp_path, classes=5)
    spec = f"masks:{tmp_path}"
    for file in (tmp_path / "masks/train").iterdir():
        file.write_bytes(b"not read")
    assert "cannot read" in refused(spec)
    part = open_evaluation(f"{spec},classes=6").parts["segmentation"]
    assert part.classes == tuple(f"class {n}" for n in range(6))
    (tmp_path / "classes.txt").write_text("sky\nwater\nroad\nroof\ntree\n\n")
    assert open_evaluation(spec).parts["segmentation"].classes[-1] == "tree"
    assert refused(f"{spec},classes=6").endswith("classes.txt names 5 classes")
    (tmp_path / "classes.txt").write_text("sky\n\nroad\n")
    assert refused(spec).endswith("classes.txt, line 2: a class without a name")


def test_a_class_that_training_masks_never_show(tmp_path):
    write_masks(tmp_path, classes=5)
    values(tmp_path / "masks/val/p0.png", np.full((18, 22), 5, np.uint8))
    part = open_evaluation(f"masks:{tmp_path}").parts["segmentation"]
    assert "has the value 5 (396 pixels out of range): classes are 0 to 4, or 255 for nothing" in (
        wrong(part.test.truth, 0)
    )


def test_test_pictures_without_masks_are_passed_over(tmp_path):
    written = write_masks(tmp_path)
    picture(tmp_path / "images/test/x.png", (5, 5), colour_of(1))
    part = open_evaluation(f"masks:{tmp_path}").parts["segmentation"]
    assert names(part.test.pictures) == [name for name, _ in written.test]
    assert "no masks or annotations or labels/test/" in refused(f"masks:{tmp_path},test=test")
    assert open_evaluation(f"masks:{tmp_path},test=train").pictures.name(0) == "images/train/p0.png"


def test_palettes_are_numbers_and_not_colours(tmp_path):
    write_masks(tmp_path, classes=3)
    numbers = np.arange(18 * 22).reshape(18, 22) % 3
    image = Image.fromarray(numbers.astype(np.uint8)).convert("P")
    image.putdata(numbers.flatten().tolist())
    image.putpalette([9, 200, 100, 255, 0, 0, 9, 200, 100])  # classes 0 and 2 look the same
    image.save(tmp_path / "masks/train/p0.png")
    part = open_evaluation(f"masks:{tmp_path}").parts["segmentation"]
    assert part.train.truth(0).tolist() == numbers.tolist()


def grey_png(path, numbers, bits):
    """A grey PNG of few bits by the format's own rules (ISO/IEC 15948): Pillow writes none."""
    rows = b""
    for row in numbers:
        text = "".join(f"{v:0{bits}b}" for v in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")

    def chunk(kind, data):
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", len(numbers[0]), len(numbers), bits, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_masks_of_few_bits(tmp_path, bits):
    write_masks(tmp_path, classes=2)
    numbers = [[(x + y) % 2**bits for x in range(22)] for y in range(18)]
    grey_png(tmp_path / "masks/train/p0.png", numbers, bits)
    part = open_evaluation(f"masks:{tmp_path},classes=16").parts["segmentation"]
    assert part.train.truth(0).tolist() == numbers


def test_exif_does_not_turn_a_mask(tmp_path):
    written = write_masks(tmp_path, classes=3)
    file = tmp_path / "masks/train/p0.png"
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(written.train[0][1]).save(file, exif=turned)
    part = open_evaluation(f"masks:{tmp_path}").parts["segmentation"]
    assert part.train.truth(0).shape == (18, 22)


def test_a_mask_of_another_size(tmp_path):
    write_masks(tmp_path)
    file = tmp_path / "masks/val/p1.png"
    values(file, np.zeros((18, 22), np.uint8))
    part = open_evaluation(f"masks:{tmp_path}").parts["segmentation"]
    assert wrong(part.test.truth, 1) == (
        f"{file} is 22 x 18 pixels and its picture images/val/p1.png 23 x 18"
    )
    # A picture that EXIF turns is as large as it is shown.
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (18, 22)).save(tmp_path / "images/val/p1.png", exif=turned)
    assert part.test.pictures.read(1).shape == (3, 18, 22)
    assert part.test.truth(1).shape == (18, 22)


def test_a_mask_in_colours_and_a_broken_one(tmp_path):
    write_masks(tmp_path)
    picture(tmp_path / "masks/val/p0.png", (18, 22), (1, 2, 3))
    (tmp_path / "masks/val/p1.png").write_bytes(b"\x89PNG")
    part = open_evaluation(f"masks:{tmp_path}").parts["segmentation"]
    assert "p0.png has pixels of mode RGB: a map has one channel" in wrong(part.test.truth, 0)
    assert wrong(part.test.truth, 1).startswith(f"cannot read '{tmp_path}/masks/val/p1.png'")


def test_masks_that_are_all_nothing(tmp_path):
    write_masks(tmp_path)
    for n in (0, 1):
        values(tmp_path / f"masks/train/p{n}.png", np.full((18, 22 + n), 255, np.uint8))
    assert refused(f"masks:{tmp_path}").endswith("no mask has a value but 255, which is ignored")


@pytest.mark.parametrize("split", ["", "test", "val"])
def test_instances(tmp_path, split):
    written = write_instances(tmp_path, split)
    data = open_evaluation(f"instances:{tmp_path}")
    assert set(data.parts) == {"instances"}
    assert_maps(data.parts["instances"].test, written.test, lambda value: value)
    assert int(data.parts["instances"].test.truth(1).max()) == 302


def test_instances_of_a_split_that_is_not_there(tmp_path):
    write_instances(tmp_path, "held")
    assert names(open_evaluation(f"instances:{tmp_path},test=held").pictures)[0].endswith(
        "held/o0.jpg"
    )
    assert "no hold/ in" in refused(f"instances:{tmp_path},test=hold")
