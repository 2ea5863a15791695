"""All files of a student that leaves the house, and their copy into a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import distill.export.standalone
from distill.export.card import model_card
from distill.export.evidence import Evidence, read_evidence
from distill.export.origin import read_origin
from distill.export.place import Place
from distill.export.select import Found, is_student
from distill.export.student_folder import replacing
from distill.files import writing
from distill.formats.about import about_path, exported_files, read_about, unfit_files
from distill.formats.latency_table import read_bench
from students import Spaces, UserError, load_student

Files = Mapping[str, Path | bytes]
"""Names in the folder, with / between, and what they hold: a file, or bytes made for it."""


def complete(found: Found, place: Place) -> dict[str, Path | bytes]:
    """The files of a student's folder, with a whole card, the licence that its run's recipe says
    now, and adapters.py, which reads the adapters without this project: these are folded. Files of
    other formats go along, but for those of `unfit_files`.

    Raises:
        UserError: if the folder is not whole.
    """
    folder = found.folder
    student, spaces = load_student(folder), Spaces.load(folder)
    origin = read_origin(folder, found.recipe)
    evidence = Evidence()
    if found.run is not None and found.recipe is not None and origin.stage in found.recipe.stages:
        evidence = read_evidence(found.run, found.recipe, origin.stage, origin.name)
    unfit = unfit_files(folder)
    fit = [file for file in exported_files(folder) if file not in unfit]
    formats = {file.relative_to(folder).as_posix(): read_about(file) for file in fit}
    evidence = replace(evidence, bench=read_bench(folder), formats=formats)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["pretrained_cfg"]["license"] = origin.licence
    about = json.loads((folder / "adapters.json").read_text(encoding="utf-8"))
    made = {
        **spaces.folded().files(about),
        "README.md": model_card(student, spaces, origin, place, evidence).encode(),
        "adapters.py": Path(distill.export.standalone.__file__).read_bytes(),
        "config.json": (json.dumps(config, indent=2) + "\n").encode(),
    }
    kept: dict[str, Path | bytes] = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    }
    for file in unfit:
        for left_out in (file, about_path(file)):
            kept.pop(left_out.relative_to(folder).as_posix(), None)
    return dict(sorted((kept | made).items()))


def size(content: Path | bytes) -> int:
    """Bytes of a file."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def check_target(target: Path, found: Found, overwrite: bool) -> None:
    """See that a folder may be made, or replaced: an exported student may be, anything else that
    is not empty with `overwrite` alone, and never what holds the student itself or is in a run.

    Raises:
        UserError: if it may not.
    """
    resolved = target.resolve()
    own = {found.folder.resolve(), *(() if found.run is None else (found.run.resolve(),))}
    for kept in (*own, Path.cwd(), Path.home()):
        if resolved == kept.resolve() or resolved in kept.resolve().parents:
            raise UserError(f"--to {target} holds {kept}, and would be replaced: name a new folder")
    # STAGE/STUDENT of a run is what later stages and its report read.
    within = [one for one in resolved.parents if (one / "recipe.yaml").is_file()]
    if within:
        raise UserError(f"--to {target} is within the run {within[0]}: name a folder elsewhere")
    if target.exists() and not target.is_dir():
        raise UserError(f"--to {target} is a file: name a folder")
    if target.is_dir() and any(target.iterdir()) and not is_student(target) and not overwrite:
        raise UserError(
            f"--to {target} is not empty and no exported student: name another folder, or replace "
            "all that is in it with --overwrite"
        )


def copy(files: Files, target: Path) -> None:
    """Write the files into a folder, which is whole once it has its name.

    Raises:
        UserError: if there is no room, or no right to.
    """
    with writing(target), replacing(target) as beside:
        for name, content in files.items():
            path = beside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                shutil.copyfile(content, path)
