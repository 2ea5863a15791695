"""Tiny data sets in the layouts, file names and encodings of the originals.

Each function writes into a folder and returns what it wrote, so that a test needs nothing of the
reader to know what should come out. Pictures are of one colour each, which JPEG keeps to a few
levels.
"""

from __future__ import annotations

import csv
import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]


def picture(path: Path, size: tuple[int, int], colour: Colour) -> None:
    """A file of `size` (height, width), all of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size[1], size[0]), colour).save(path)


def values(path: Path, array: np.ndarray) -> None:
    """A PNG of one channel, 8 bits for uint8 and 16 for uint16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def colour_of(number: int) -> Colour:
    return (37 * number + 20) % 256, (91 * number + 60) % 256, (153 * number + 10) % 256


@dataclass
class WrittenClasses:
    """`train` and `test`: (name, label, size, colour) sorted by name."""

    classes: list[str]
    train: list[tuple[str, int, tuple[int, int], Colour]] = field(default_factory=list)
    test: list[tuple[str, int, tuple[int, int], Colour]] = field(default_factory=list)


WNIDS = {
    "n01440764": "tench, Tinca tinca",
    "n02012849": "crane",
    "n04612504": "yawl",
}


def write_class_folders(
    folder: Path,
    folders: tuple[str, ...],
    splits: tuple[str, str] = ("train", "test"),
    per_class: tuple[int, int] = (3, 2),
    ending: str = ".jpg",
) -> WrittenClasses:
    """A folder for each class in two splits; the pictures of a class share a colour nearly."""
    written = WrittenClasses(list(folders))
    for split, held, number in zip(splits, (written.train, written.test), per_class, strict=True):
        for label, name in enumerate(folders):
            for i in range(number):
                file, size = f"{split}/{name}/{name}_{i}{ending}", (20 + 2 * i, 24 + label)
                picture(folder / file, size, colour_of(label))
                held.append((file, label, size, colour_of(label)))
    return written


def write_imagenet(folder: Path, per_class: tuple[int, int] = (3, 2)) -> WrittenClasses:
    """train/WNID/WNID_i.JPEG, val/WNID/..., LOC_synset_mapping.txt; classes are first synonyms."""
    written = write_class_folders(folder, tuple(WNIDS), ("train", "val"), per_class, ".JPEG")
    text = "".join(f"{wnid} {names}\n" for wnid, names in WNIDS.items())
    (folder / "LOC_synset_mapping.txt").write_text(text)
    written.classes = [names.split(",")[0] for names in WNIDS.values()]
    return written


@dataclass
class WrittenMaps:
    """`train` and `test`: picture's name and what its map's file holds, sorted by name."""

    classes: list[str] = field(default_factory=list)
    train: list[tuple[str, np.ndarray]] = field(default_factory=list)
    test: list[tuple[str, np.ndarray]] = field(default_factory=list)


def _blocks(size: tuple[int, int], numbers: np.ndarray, dtype: type) -> np.ndarray:
    """Upright bars of the numbers."""
    columns = np.arange(size[1]) * len(numbers) // size[1]
    return np.broadcast_to(numbers[columns], size).astype(dtype)


def write_ade20k(folder: Path, count: tuple[int, int] = (4, 3)) -> WrittenMaps:
    """ADEChallengeData2016: 0 is nothing, 1 to 150 are classes; objectInfo150.txt, tabs."""
    written = WrittenMaps([f"thing {n}" for n in range(1, 151)])
    lines = ["Idx\tRatio\tTrain\tVal\tName"]
    lines += [f"{n}\t0.1\t10\t1\tthing {n}, other word {n}   " for n in range(1, 151)]
    (folder / "objectInfo150.txt").write_text("\n".join(lines) + "\n")
    splits = (("training", "train", written.train), ("validation", "val", written.test))
    for (split, short, held), number in zip(splits, count, strict=True):
        for i in range(number):
            name = f"ADE_{short}_{i + 1:08}"
            size = (30 + i, 40 - i)
            truth = _blocks(size, np.array([0, 1, (40 * i) % 150 + 1, 150]), np.uint8)
            picture(folder / "images" / split / f"{name}.jpg", size, colour_of(i))
            values(folder / "annotations" / split / f"{name}.png", truth)
            held.append((f"images/{split}/{name}.jpg", truth))
    return written


def write_masks(
    folder: Path,
    classes: int = 5,
    masks: str = "masks",
    splits: tuple[str, str] = ("train", "val"),
    dtype: type = np.uint8,
) -> WrittenMaps:
    """images/SPLIT and masks/SPLIT; 255 is nothing; the last class is in the training split."""
    written = WrittenMaps([f"class {n}" for n in range(classes)])
    for split, held in zip(splits, (written.train, written.test), strict=True):
        for i in range(2):
            size = (18, 22 + i)
            truth = _blocks(size, np.array([i, 255, classes - 1]), dtype)
            picture(folder / "images" / split / f"p{i}.png", size, colour_of(i))
            values(folder / masks / split / f"p{i}.png", truth)
            held.append((f"images/{split}/p{i}.png", truth))
    return written


def write_instances(folder: Path, split: str = "") -> WrittenMaps:
    """images/ and instances/: 0 is the background; the second map is of 16 bits."""
    written = WrittenMaps()
    for i, dtype in enumerate((np.uint8, np.uint16)):
        size = (16, 20)
        truth = _blocks(size, np.array([0, 1, 0, 2 + 300 * i]), dtype)
        picture(folder / "images" / split / f"o{i}.jpg", size, colour_of(i))
        values(folder / "instances" / split / f"o{i}.png", truth)
        written.test.append(("/".join(filter(None, ("images", split, f"o{i}.jpg"))), truth))
    return written


def write_depth(folder: Path, splits: tuple[str, str] = ("train", "test")) -> WrittenMaps:
    """images/SPLIT and depth/SPLIT, 16-bit PNG, 0 where nothing is known."""
    written = WrittenMaps()
    for split, held in zip(splits, (written.train, written.test), strict=True):
        for i in range(2):
            size = (20, 26)
            truth = _blocks(size, np.array([0, 500, 1250 + i, 40_000]), np.uint16)
            picture(folder / "images" / split / f"d{i}.jpg", size, colour_of(i))
            values(folder / "depth" / split / f"d{i}.png", truth)
            held.append((f"images/{split}/d{i}.jpg", truth))
    return written


def write_nyu(folder: Path, count: tuple[int, int] = (3, 2)) -> WrittenMaps:
    """NYU depth v2 as BTS has it: sync/ and official_splits/test/, 480 x 640, millimetres; paths of
    the training list begin with a slash, and one more line has no depth."""
    written = WrittenMaps()
    parts = (
        ("train", "sync", "/kitchen_0028b", written.train),
        ("test", "official_splits/test", "bathroom", written.test),
    )
    for (split, base, scene, held), number in zip(parts, count, strict=True):
        lines = []
        for i in range(number):
            size = (480, 640)
            truth = _blocks(size, np.array([0, 713 + i, 2500, 9999]), np.uint16)
            rgb, depth = f"{scene}/rgb_{i:05}.jpg", f"{scene}/sync_depth_{i:05}.png"
            name = f"{base}/{rgb.lstrip('/')}"
            picture(folder / name, size, colour_of(i))
            values(folder / base / depth.lstrip("/"), truth)
            lines.append(f"{rgb} {depth} 518.8579")
            held.append((name, truth))
        if split == "train":
            lines.insert(1, f"{scene}/rgb_09999.jpg None 518.8579")
        (folder / f"nyudepthv2_{split}_files_with_gt.txt").write_text("\n".join(lines) + "\n")
    return written


@dataclass
class WrittenPairs:
    """Records as they are in the JSON files, in the order of their files' names."""

    pairs: list[dict]


def write_spair(folder: Path) -> WrittenPairs:
    """SPair-71k: three test pairs of four pictures in two categories, and a training pair."""
    written = WrittenPairs([])
    sizes = {"2008_1": (50, 60), "2008_2": (64, 48), "2009_3": (40, 40), "2009_4": (44, 70)}
    given = (
        ("test", "000001", "2008_2", "2008_1", "aeroplane", [[3, 4], [20, 31]], [[5, 6], [22, 40]]),
        ("test", "000002", "2008_1", "2008_2", "aeroplane", [[9, 4]], [[7, 6]]),
        (
            "test",
            "000003",
            "2009_3",
            "2009_4",
            "cat",
            [[1, 2], [3, 4], [5, 6]],
            [[2, 1], [4, 3], [6, 5]],
        ),
        ("trn", "000004", "2009_4", "2009_3", "cat", [[1, 2]], [[2, 1]]),
    )
    for number, (split, key, source, target, category, points, others) in enumerate(given):
        for name in (source, target):
            picture(folder / f"JPEGImages/{category}/{name}.jpg", sizes[name], colour_of(number))
        record = {
            "filename": f"{source}-{target}:{category}",
            "src_imname": f"{source}.jpg",
            "trg_imname": f"{target}.jpg",
            "src_imsize": [*sizes[source][::-1], 3],
            "trg_imsize": [*sizes[target][::-1], 3],
            "src_bndbox": [1, 1, 30, 35],
            "trg_bndbox": [2, 3, 25 + 10 * number, 39],
            "category": category,
            "src_kps": points,
            "trg_kps": others,
            "kps_ids": list(range(len(points))),
            "viewpoint_variation": 0,
        }
        file = folder / f"PairAnnotation/{split}/{key}-{source}-{target}:{category}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(record))
        if split == "test":
            written.pairs.append(record)
    return written


@dataclass
class WrittenCaptions:
    """`captions`: (picture's name, caption) in the order of the file; `pictures` in theirs, without
    those that have no caption."""

    pictures: list[str]
    captions: list[tuple[str, str]]


def write_coco(folder: Path, split: str = "val2017", inside: str = "") -> WrittenCaptions:
    """COCO captions: ids in no order, five captions here and two there, one image without."""
    ids = {900: 5, 17: 0, 404: 2}
    images, annotations, captions = [], [], []
    for number, key in enumerate(ids):
        name = f"{key:012}.jpg"
        picture(folder / inside / split / name, (30, 36 + number), colour_of(number))
        images.append({"license": 1, "file_name": name, "height": 30, "width": 36, "id": key})
    for round_ in range(5):
        for key, count in reversed(ids.items()):
            if round_ < count:
                text = f"A picture of {key}, sentence {round_}."
                # As in the original, some end with a line feed.
                raw = text + "\n" * (round_ == 1)
                annotations.append({"image_id": key, "id": 7 * len(annotations), "caption": raw})
                captions.append((f"{inside}{split}/{key:012}.jpg", text))
    file = folder / "annotations" / f"captions_{split}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
    file.write_text(json.dumps(content))
    names = [f"{inside}{split}/{key:012}.jpg" for key, count in ids.items() if count]
    return WrittenCaptions(names, captions)


def write_flickr30k(folder: Path) -> WrittenCaptions:
    """Karpathy's dataset_flickr30k.json and flickr30k-images/."""
    return _karpathy(folder / "dataset_flickr30k.json", folder / "flickr30k-images", "")


def write_karpathy_coco(folder: Path) -> WrittenCaptions:
    """Karpathy's dataset_coco.json and images/val2014/."""
    return _karpathy(folder / "dataset_coco.json", folder / "images", "val2014")


def _karpathy(file: Path, images: Path, filepath: str) -> WrittenCaptions:
    file.parent.mkdir(parents=True, exist_ok=True)
    records, written = [], WrittenCaptions([], [])
    for number, split in enumerate(("train", "test", "val", "test", "restval")):
        name = f"{filepath}/{number}.jpg".lstrip("/")
        sentences = [{"raw": f"Sentence {i} of {number}.", "tokens": []} for i in range(number + 1)]
        record = {"sentids": [], "imgid": number, "split": split, "filename": f"{number}.jpg"}
        records.append(
            record | {"sentences": sentences} | ({"filepath": filepath} if filepath else {})
        )
        picture(images / name, (20, 30 + number), colour_of(number))
        if split == "test":
            written.pictures.append(name)
            written.captions += [(name, sentence["raw"]) for sentence in sentences]
    file.write_text(json.dumps({"images": records, "dataset": "x"}))
    return written


def write_caption_table(file: Path, column: str = "path") -> WrittenCaptions:
    """A CSV whose captions hold commas, quotes and a line feed; the pictures lie beside it."""
    rows = [
        ("b/1.png", 'a "red", round thing'),
        ("a.png", "two\nlines"),
        ("b/1.png", "the same again"),
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(["id", column, "caption"])
        writer.writerows([number, *row] for number, row in enumerate(rows))
    for number, name in enumerate(("b/1.png", "a.png")):
        picture(file.parent / name, (12, 14), colour_of(number))
    return WrittenCaptions(["b/1.png", "a.png"], rows)


@dataclass
class WrittenLandmarks:
    """`truth` is what the file holds."""

    truth: dict
    size: tuple[int, int] = (40, 60)


def write_oxford(
    folder: Path, stem: str = "gnd_roxford5k", protocol: int = pickle.DEFAULT_PROTOCOL
) -> WrittenLandmarks:
    """Revisited Oxford: the pickle with numpy arrays, jpg/. Of a query's picture the left half is
    of one colour and the right half of another."""
    gallery = [f"all_souls_{n:06}" for n in range(6)]
    queries = ["queries_000013", "queries_000026"]
    truth = {
        "imlist": gallery,
        "qimlist": queries,
        "gnd": [
            {
                "bbx": [30.4, 5.6, 80.0, 35.5],  # beyond the right edge
                "easy": np.array([0, 3]),
                "hard": np.array([4]),
                "junk": np.array([], dtype=np.float64),
            },
            {
                "bbx": np.array([0.0, 0.0, 29.6, 40.0]),
                "easy": np.array([1], dtype=np.int32),
                "hard": [],
                "junk": np.array([5, 2]),
            },
        ],
    }
    written = WrittenLandmarks(truth)
    for number, name in enumerate(gallery):
        picture(folder / f"jpg/{name}.jpg", written.size, colour_of(number))
    height, width = written.size
    for name in queries:
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[:, : width // 2] = (250, 10, 10)
        pixels[:, width // 2 :] = (10, 10, 250)
        Image.fromarray(pixels).save(folder / f"jpg/{name}.jpg", quality=95, subsampling=0)
    (folder / f"{stem}.pkl").write_bytes(pickle.dumps(truth, protocol))
    return written


def write_paris(folder: Path) -> WrittenLandmarks:
    """Revisited Paris, the same under its own name."""
    return write_oxford(folder, "gnd_rparis6k")
