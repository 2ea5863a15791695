"""Layouts `imagenet:` and `classes:`: a folder for each class, in a training and a test split."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from distill.data.folder import EXTENSIONS
from distill.datasets.files import (
    Identity,
    Names,
    count,
    few,
    folders_in,
    lines_of,
    listed,
    need,
)
from distill.datasets.layout import Layout, Request
from distill.datasets.parts import Classification, EvaluationSet, Labelled
from distill.datasets.pictures import Pictures
from distill.datasets.splits import TEST, TRAIN, split_name
from students.errors import UserError

_NAMES = ("classes.txt", "LOC_synset_mapping.txt")


def class_names(folder: Path, folders: Sequence[str], identity: Identity) -> tuple[str, ...]:
    """What classes are called, by their folders: lines "n01440764 tench, Tinca tinca" of
    classes.txt or LOC_synset_mapping.txt, of which the first synonym counts; else as the folders.

    Raises:
        UserError: if the file lacks a class.
    """
    file = next((folder / name for name in _NAMES if (folder / name).is_file()), None)
    if file is None:
        return tuple(folders)
    identity.files(folder, [file.name])
    named = {}
    for line in lines_of(file):
        key, _, synonyms = line.strip().partition(" ")
        named[key] = synonyms.split(",")[0].strip()
    missing = [name for name in folders if not named.get(name)]
    if missing:
        raise UserError(
            f"{file} has no name for {count(len(missing), 'class', 'classes')}: {few(missing)}; "
            f"expected a line for each folder, as in {folders[0]} NAME, SYNONYM"
        )
    return tuple(named[name] for name in folders)


def _split(folder: Path, split: str, classes: Sequence[str], identity: Identity) -> Labelled:
    """Raises UserError if a class has no picture."""
    labels = array("q")

    def names() -> Iterator[str]:
        for label, name in enumerate(classes):
            before = len(labels)
            for entry in listed(folder, EXTENSIONS, f"{split}/{name}/"):
                identity.entry(entry)
                labels.append(label)
                yield entry.name
            if len(labels) == before:
                raise UserError(f"no image in {os.path.join(folder, split, name)!r}")  # noqa: PTH118

    pictures = Pictures(folder, Names(names()))
    return Labelled(pictures, torch.from_numpy(np.array(labels, dtype=np.int64)))


def _open(request: Request, train: str, test: str, expected: str) -> EvaluationSet:
    folder, identity = request.folder(), Identity(request)
    classes = {split: folders_in(folder / split) for split in (train, test)}
    for split, found in classes.items():
        if not found:
            flat = [entry.name for entry in listed(folder, EXTENSIONS, f"{split}/")]
            there = f"{count(len(flat), 'image')} of no class: {few(flat)}" if flat else "nothing"
            raise request.error(
                f"no folder of a class in {str(folder / split)!r}: expected {expected}; there "
                f"{'are' if len(flat) > 1 else 'is'} {there}"
                + ("; move each into the folder of its class" if flat else "")
            )
    for one, other in ((train, test), (test, train)):
        missing = sorted(set(classes[other]) - set(classes[one]))
        if missing:
            raise request.error(
                f"the classes of {train}/ and {test}/ differ: {one}/ has no folder for "
                f"{count(len(missing), 'class', 'classes')} of {other}/: {few(missing)}"
            )
    names = class_names(folder, classes[train], identity)
    part = Classification(
        _split(folder, train, classes[train], identity),
        _split(folder, test, classes[train], identity),
        names,
    )
    return EvaluationSet(
        folder.resolve().name,
        request.layout,
        identity.digest(),
        part.test.pictures,
        {"classification": part},
    )


def _imagenet(request: Request) -> EvaluationSet:
    folder, expected = request.folder(), "train/WNID/*.JPEG and val/WNID/*.JPEG"
    for split in ("train", "val"):
        if not (folder / split).is_dir():
            raise need(request, folder, f"{split}/", expected)
    return _open(request, "train", "val", expected)


def _classes(request: Request) -> EvaluationSet:
    folder, expected = request.folder(), "train/CLASS/* and test/CLASS/*"
    return _open(
        request,
        split_name(request, folder, "train", TRAIN, expected),
        split_name(request, folder, "test", TEST, expected),
        expected,
    )


LAYOUTS = (
    Layout("imagenet", "imagenet:DIR", (), ("classification",), _imagenet),
    Layout(
        "classes",
        "classes:DIR[,train=NAME,test=NAME]",
        ("train", "test"),
        ("classification",),
        _classes,
    ),
)
