"""Layouts `nyu:` and `depth:`: pictures with 16-bit PNG of distances."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.datasets.files import Identity, Names, count, few, lines_of, need
from distill.datasets.layout import Layout, Request
from distill.datasets.maps import DepthMaps, MapFolder, paired
from distill.datasets.parts import Annotated, Depth, EvaluationSet
from distill.datasets.pictures import Pictures
from distill.datasets.splits import TEST, TRAIN, split_name

NEAR = 1e-3
"""Of BTS (arXiv 1907.10326), as are the lists' names, their columns and the millimetres."""
NYU_FAR, NYU_SCALE = 10.0, 1000.0

EIGEN_CROP = (45, 471, 41, 601)
NYU_SIZE = (480, 640)
"""The crop of Eigen et al. (arXiv 1406.2283) as public evaluations round it, of this picture."""

_LISTS = {
    "train": ("nyudepthv2_train_files_with_gt.txt", ("", "sync")),
    "test": ("nyudepthv2_test_files_with_gt.txt", ("", "official_splits/test")),
}
_LISTS_LIE_IN = ("", "filelists", "train_test_inputs")
_DEPTH = MapFolder(("depth", "depths"), "depth map")


def read_list(file: Path) -> tuple[list[tuple[str, str]], int]:
    """(picture, depth) of each line "picture depth focal", and how many lines have None for a depth
    and were left out; a leading slash does not count.

    Raises:
        UserError: a line has fewer than two columns; by number.
    """
    found: list[tuple[str, str]] = []
    without = 0
    for number, line in enumerate(lines_of(file), 1):
        columns = line.split()
        if not columns:
            continue
        if len(columns) < 2:
            raise Request("nyu", "", {}).error(
                f"{file}, line {number}: {line[:80]!r} is not 'PICTURE DEPTH FOCAL'"
            )
        if columns[1] == "None":
            without += 1
        else:
            found.append((columns[0].lstrip("/"), columns[1].lstrip("/")))
    return found, without


def _nyu(request: Request) -> EvaluationSet:
    folder, identity = request.folder(), Identity(request)
    notes: list[str] = []
    train = _listed_split(request, folder, "train", identity, notes)
    test = _listed_split(request, folder, "test", identity, notes, NYU_SIZE)
    part = Depth(train, test, NEAR, NYU_FAR, EIGEN_CROP)
    return _set(request, folder, identity, part, tuple(notes))


def _listed_split(
    request: Request,
    folder: Path,
    split: str,
    identity: Identity,
    notes: list[str],
    size: tuple[int, int] | None = None,
) -> Annotated:
    name, bases = _LISTS[split]
    files = [folder / place / name for place in _LISTS_LIE_IN]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        expected = "the lists of BTS there, or in filelists/ or train_test_inputs/"
        raise need(request, folder, name, expected)
    lines, without = read_list(file)
    if without:
        notes.append(f"{split}: {count(without, 'picture')} whose depth is None left out")
    if not lines:
        left_out = f", but {count(without, 'line')} whose depth is None" if without else ""
        raise request.error(f"{file} lists no picture with a depth{left_out}")
    pictures, depths = zip(*lines, strict=True)
    base = next((b for b in bases if (folder / b / pictures[0]).is_file()), bases[0])
    inside = f"{base}/" if base else ""
    identity.files(folder, [str(file.relative_to(folder))])
    names: list[Sequence[str]] = [
        [inside + name for name in column] for column in (pictures, depths)
    ]
    for what, column in zip(("image", "depth map"), names, strict=True):
        missing = identity.files(folder, column)
        if missing:
            where = " or ".join(repr(str(folder / b)) for b in bases)
            raise request.error(
                f"{count(len(missing), what)} of the {len(lines)} that {file} lists "
                f"{'is' if len(missing) == 1 else 'are'} not in {where}: {few(missing)}"
            )
    found = Pictures(folder, names[0])
    return Annotated(found, DepthMaps(found, folder, Names(names[1]), NYU_SCALE, size))


def _depth(request: Request) -> EvaluationSet:
    folder, identity = request.folder(), Identity(request)
    scale, far = request.positive("scale", 1000.0), request.positive("far", 10.0)
    if far <= NEAR:
        raise request.error(f"far={far:g} must be above {NEAR:g}")
    expected = "images/{train,test}/* and depth/{train,test}/*.png"
    if not (folder / "images").is_dir():
        raise need(request, folder, "images/", expected)

    def split(key: str, choices: tuple[str, ...]) -> Annotated:
        beside = [folder / name for name in _DEPTH.maps]
        name = split_name(request, folder / "images", key, choices, expected, beside)
        pictures, names, maps = paired(request, folder, f"{name}/", _DEPTH, identity)
        return Annotated(pictures, DepthMaps(pictures, maps, names, scale))

    part = Depth(split("train", TRAIN), split("test", TEST), NEAR, far)
    return _set(request, folder, identity, part)


def _set(
    request: Request, folder: Path, identity: Identity, part: Depth, notes: tuple[str, ...] = ()
) -> EvaluationSet:
    name, digest = folder.resolve().name, identity.digest()
    return EvaluationSet(name, request.layout, digest, part.test.pictures, {"depth": part}, notes)


LAYOUTS = (
    Layout("nyu", "nyu:DIR", (), ("depth",), _nyu),
    Layout(
        "depth",
        "depth:DIR[,scale=1000,far=10,train=NAME,test=NAME]",
        ("scale", "far", "train", "test"),
        ("depth",),
        _depth,
    ),
)
