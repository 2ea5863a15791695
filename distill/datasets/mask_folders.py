"""Layouts `ade20k:`, `masks:` and `instances:`: a folder of pictures and one of their maps."""

from __future__ import annotations

import csv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from distill.datasets.files import Identity, count, is_there, lines_of, need
from distill.datasets.layout import Layout, Request
from distill.datasets.maps import ClassMaps, InstanceMaps, MapFolder, Maps, paired, read_map
from distill.datasets.parts import Annotated, EvaluationSet, Instances, Segmentation
from distill.datasets.splits import TEST, TRAIN, split_name
from students.errors import UserError

ADE20K_CLASSES = 150
"""Of the scene parsing benchmark (Zhou et al., CVPR 2017): 1 to 150 in the files, 0 is none."""

_READERS = 8

_ADE20K = MapFolder(("annotations",), "annotation")
_MASKS = MapFolder(("masks", "annotations", "labels"), "mask")
_INSTANCES = MapFolder(("instances", "masks", "annotations", "labels"), "mask")


def _segmentation(
    request: Request,
    folder: Path,
    identity: Identity,
    train: Annotated,
    test: Annotated,
    classes: tuple[str, ...],
) -> EvaluationSet:
    part = Segmentation(train, test, classes)
    name, digest = folder.resolve().name, identity.digest()
    return EvaluationSet(name, request.layout, digest, test.pictures, {"segmentation": part})


def _ade20k(request: Request) -> EvaluationSet:
    folder, identity = request.folder(), Identity(request)
    if not (folder / "images").is_dir():
        expected = "images/{training,validation}/*.jpg and annotations/{training,validation}/*.png"
        raise need(request, folder, "images/", expected)

    def split(name: str) -> Annotated:
        pictures, names, maps = paired(request, folder, f"{name}/", _ADE20K, identity)
        return Annotated(pictures, ClassMaps(pictures, maps, names, ADE20K_CLASSES, 1, 0))

    train, test = split("training"), split("validation")
    return _segmentation(request, folder, identity, train, test, _ade20k_names(folder, identity))


def _ade20k_names(folder: Path, identity: Identity) -> tuple[str, ...]:
    """The first synonym of each class by objectInfo150, whose last column holds them."""
    for name, split in (("objectInfo150.txt", "\t"), ("objectInfo150.csv", ",")):
        if not (folder / name).is_file():
            continue
        identity.files(folder, [name])
        rows = list(csv.reader(lines_of(folder / name), delimiter=split))[1:]
        if len(rows) != ADE20K_CLASSES or [row[0].strip() for row in rows] != [
            str(number) for number in range(1, ADE20K_CLASSES + 1)
        ]:
            raise UserError(
                f"{folder / name}: expected a header and {ADE20K_CLASSES} lines, numbered from 1"
            )
        return tuple(row[-1].replace(";", ",").split(",")[0].strip() for row in rows)
    return tuple(f"class {number}" for number in range(1, ADE20K_CLASSES + 1))


def _masks(request: Request) -> EvaluationSet:
    folder, identity = request.folder(), Identity(request)
    ignore = None if request.text("ignore") == "none" else request.whole("ignore", 255, 0)
    asked = request.whole("classes", 0, 1) or None
    expected = "images/{train,test}/* and masks/{train,test}/*.png"
    if not (folder / "images").is_dir():
        raise need(request, folder, "images/", expected)

    def files(key: str, choices: tuple[str, ...]) -> Maps:
        masks = [folder / name for name in _MASKS.maps]
        name = split_name(request, folder / "images", key, choices, expected, masks)
        pictures, names, maps = paired(request, folder, f"{name}/", _MASKS, identity)
        return Maps(pictures, maps, names)

    train, test = files("train", TRAIN), files("test", TEST)
    names = _mask_names(request, folder, asked, identity)
    if not names:
        number = asked or _count_classes(train, ignore)
        names = tuple(f"class {value}" for value in range(number))

    def annotated(maps: Maps) -> Annotated:
        truth = ClassMaps(maps.pictures, maps.folder, maps.names, len(names), 0, ignore)
        return Annotated(maps.pictures, truth)

    return _segmentation(request, folder, identity, annotated(train), annotated(test), names)


def _mask_names(
    request: Request, folder: Path, asked: int | None, identity: Identity
) -> tuple[str, ...]:
    """The lines of classes.txt, if it is there."""
    file = folder / "classes.txt"
    if not file.is_file():
        return ()
    identity.files(folder, [file.name])
    names = tuple(line.strip() for line in lines_of(file))
    if not all(names):
        raise UserError(f"{file}, line {names.index('') + 1}: a class without a name")
    if asked is not None and len(names) != asked:
        raise request.error(
            f"classes={asked}, but {file} names {count(len(names), 'class', 'classes')}"
        )
    return names


def _count_classes(maps: Maps, ignore: int | None) -> int:
    """One more than the largest value of all maps."""

    def largest(index: int) -> int:
        values = read_map(maps.path(index))
        kept = values if ignore is None else values[values != ignore]
        return int(np.max(kept, initial=-1))

    with ThreadPoolExecutor(_READERS) as readers:
        found = max(readers.map(largest, range(len(maps.names)))) + 1
    if not found:
        raise UserError(f"{maps.folder}: no mask has a value but {ignore}, which is ignored")
    return found


def _instances(request: Request) -> EvaluationSet:
    folder, identity = request.folder(), Identity(request)
    images, expected = folder / "images", "images/*.jpg and instances/*.png"
    if not images.is_dir():
        raise need(request, folder, "images/", expected)
    name = request.text("test") or is_there(images, TEST)
    if request.text("test"):
        split_name(request, images, "test", TEST, expected)
    split = f"{name}/" if name else ""
    pictures, names, maps = paired(request, folder, split, _INSTANCES, identity)
    part = Instances(Annotated(pictures, InstanceMaps(pictures, maps, names)))
    title, digest = folder.resolve().name, identity.digest()
    return EvaluationSet(title, request.layout, digest, pictures, {"instances": part})


def _layout(
    name: str,
    example: str,
    keys: tuple[str, ...],
    part: str,
    function: Callable[[Request], EvaluationSet],
) -> Layout:
    return Layout(name, example, keys, (part,), function)


LAYOUTS = (
    _layout("ade20k", "ade20k:DIR", (), "segmentation", _ade20k),
    _layout(
        "masks",
        "masks:DIR[,classes=K,ignore=V,train=NAME,test=NAME]",
        ("classes", "ignore", "train", "test"),
        "segmentation",
        _masks,
    ),
    _layout("instances", "instances:DIR[,test=NAME]", ("test",), "instances", _instances),
)
