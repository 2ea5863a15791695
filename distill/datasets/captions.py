"""Layouts of pictures with captions: `coco-captions:`, `karpathy:`, `flickr30k:`, `captions:`."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from distill.datasets.files import Identity, count, few, field, need, read_json
from distill.datasets.layout import Layout, Request
from distill.datasets.parts import Captions, EvaluationSet
from distill.datasets.pictures import Pictures
from students.errors import UserError, did_you_mean

_KARPATHY_PICTURES = ("flickr30k-images", "images", "")
_PICTURE_COLUMNS = ("path", "image", "filename")


def _set(
    request: Request,
    folder: Path,
    title: str,
    captioned: Iterable[tuple[str, str]],
    order: Iterable[str],
    source: Path,
) -> EvaluationSet:
    """Of (picture, caption) in the order of the file, and the pictures in theirs. One without a
    caption is left out: nothing could find it.

    Raises:
        UserError: an empty caption, no caption, or pictures that are not there.
    """
    identity = Identity(request)
    texts: list[str] = []
    owners: list[str] = []
    for name, text in captioned:
        if not text.strip():
            raise request.error(f"{source}: an empty caption of {name}")
        texts.append(text.strip())
        owners.append(name)
        identity.words(name, text)
    if not texts:
        raise request.error(f"{source} has no caption{_split_of(request)}")
    used = set(owners)
    names = [name for name in dict.fromkeys(order) if name in used]
    missing = identity.files(folder, names)
    if missing:
        raise request.error(
            f"{count(len(missing), 'image')} of {len(names)} with captions not in "
            f"{str(folder)!r}: {few(missing)}"
        )
    number = {name: index for index, name in enumerate(names)}
    pictures = Pictures(folder, names)
    part = Captions(pictures, tuple(texts), torch.tensor([number[name] for name in owners]))
    left_out = len(set(order)) - len(names)
    notes = (f"{count(left_out, 'picture')} without a caption left out",) if left_out else ()
    digest = identity.digest()
    return EvaluationSet(title, request.layout, digest, pictures, {"captions": part}, notes)


def _split_of(request: Request) -> str:
    return f" of split {request.options['split']!r}" if "split" in request.options else ""


def _coco(request: Request) -> EvaluationSet:
    folder, split = request.folder(), request.text("split") or "val2017"
    expected = f"annotations/captions_{split}.json and {split}/*.jpg or images/{split}/*.jpg"
    file = folder / "annotations" / f"captions_{split}.json"
    if not file.is_file():
        raise need(request, folder, f"annotations/{file.name}", expected)
    inside = next((i for i in (split, f"images/{split}") if (folder / i).is_dir()), None)
    if inside is None:
        raise need(request, folder, f"{split}/", expected)
    record = read_json(file)
    names: dict[Any, str] = {}
    for number, image in enumerate(field(record, "images", list, str(file))):
        where = f"{file}: images[{number}]"
        key = field(image, "id", (int, str), where)
        if key in names:
            raise UserError(f"{where}: a second image of id {key}")
        names[key] = f"{inside}/{field(image, 'file_name', str, where)}"
    captioned = []
    unknown = []
    for number, annotation in enumerate(field(record, "annotations", list, str(file))):
        where = f"{file}: annotations[{number}]"
        key = field(annotation, "image_id", (int, str), where)
        text = field(annotation, "caption", str, where)
        if key in names:
            captioned.append((names[key], text))
        else:
            unknown.append(str(key))
    if unknown:
        raise request.error(
            f"{file}: {count(len(unknown), 'caption')} of no image that it lists: image_id "
            f"{few(unknown)}"
        )
    return _set(request, folder, folder.resolve().name, captioned, names.values(), file)


def _karpathy(request: Request) -> EvaluationSet:
    file = request.file()
    given = request.text("images")
    return _splits(request, file, request.existing(given, is_folder=True) if given else None)


def _flickr30k(request: Request) -> EvaluationSet:
    folder, name = request.folder(), "dataset_flickr30k.json"
    if not (folder / name).is_file():
        raise need(request, folder, name, f"{name} and flickr30k-images/*.jpg")
    return _splits(request, folder / name, None)


def _splits(request: Request, file: Path, folder: Path | None) -> EvaluationSet:
    """A split of Karpathy and Fei-Fei's (arXiv 1412.2306) JSON files."""
    split = request.text("split") or "test"
    images = field(read_json(file), "images", list, str(file))
    splits: Counter[str] = Counter()
    captioned, order = [], []
    for number, image in enumerate(images):
        where = f"{file}: images[{number}]"
        own = field(image, "split", str, where)
        splits[own] += 1
        if own != split:
            continue
        inside = image.get("filepath") or ""
        name = f"{inside}/{field(image, 'filename', str, where)}".lstrip("/")
        order.append(name)
        for sentence in field(image, "sentences", list, where):
            captioned.append((name, field(sentence, "raw", str, where)))
    if not order:
        near = did_you_mean(split, splits)
        raise request.error(f"{file} has no image of split {split!r}{near}")
    if folder is None:
        places = [file.parent / place for place in _KARPATHY_PICTURES]
        folder = next((place for place in places if (place / order[0]).is_file()), None)
        if folder is None:
            raise request.error(
                f"{order[0]} of {file} is not beside it in flickr30k-images/ or images/: "
                f"put its images there"
                + ("" if request.layout == "flickr30k" else " or say images=DIR")
            )
    return _set(request, folder, file.stem, captioned, order, file)


def _table(request: Request) -> EvaluationSet:
    file = request.file()
    captioned = _rows(request, file)
    order = [name for name, _ in captioned]
    return _set(request, file.parent, file.stem, captioned, order, file)


def _rows(request: Request, file: Path) -> list[tuple[str, str]]:
    """(picture, caption) of each row.

    Raises:
        UserError: a column is missing, a row is too short, or it is no CSV.
    """
    found = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            rows = csv.reader(text, strict=True)
            header = [column.strip().lower() for column in next(rows, [])]
            picture = next((c for c in _PICTURE_COLUMNS if c in header), None)
            if picture is None or "caption" not in header:
                raise request.error(
                    f"{file} has no column {'caption' if picture else 'path, image or filename'}: "
                    f"its first line is {','.join(header)[:80]!r}, expected for instance "
                    "'path,caption'"
                )
            at, of = header.index(picture), header.index("caption")
            for row in rows:
                if not row:
                    continue
                if len(row) <= max(at, of) or not row[at].strip():
                    raise request.error(
                        f"{file}, line {rows.line_num}: {count(len(row), 'column')}, "
                        f"expected {len(header)}: {','.join(row)[:80]!r}"
                    )
                found.append((row[at].strip(), row[of]))
    except (csv.Error, UnicodeDecodeError) as error:
        raise request.error(f"{file}, line {rows.line_num}: broken CSV: {error}") from None
    except OSError as error:
        raise request.error(f"cannot read {str(file)!r}: {error.strerror}") from None
    return found


LAYOUTS = (
    Layout("coco-captions", "coco-captions:DIR[,split=val2017]", ("split",), ("captions",), _coco),
    Layout(
        "karpathy",
        "karpathy:FILE.json[,images=DIR,split=test]",
        ("images", "split"),
        ("captions",),
        _karpathy,
    ),
    Layout("flickr30k", "flickr30k:DIR[,split=test]", ("split",), ("captions",), _flickr30k),
    Layout("captions", "captions:FILE.csv", (), ("captions",), _table),
)
