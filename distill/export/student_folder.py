"""A finished stage's student as a folder that timm, transformers and this project load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distill.export.card import model_card
from distill.export.origin import Origin
from distill.export.place import Place
from distill.files import sync, writing
from students import Spaces, Student


def export_student(student: Student, spaces: Spaces, folder: Path, origin: Origin) -> None:
    """Write config.json, model.safetensors, adapters.safetensors, adapters.json and README.md.

    They are written beside, synced and renamed, so that a folder of this name is whole. It loads
    with `timm.create_model("local-dir:FOLDER", pretrained=True)` and with
    `transformers.AutoModel.from_pretrained(FOLDER)`.

    Raises:
        UserError: if there is no room, or no right to.
    """
    from timm.models import save_for_hf

    with writing(folder), replacing(folder) as beside:
        save_for_hf(
            student.model,
            str(beside),
            model_args=student.arguments,
            safe_serialization=True,
        )
        _write_config(student, beside, origin)
        spaces.save(beside, origin.described())
        card = model_card(student, spaces, origin, Place(folder.name))
        (beside / "README.md").write_text(card, encoding="utf-8")


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder`, to be filled; then synced and renamed to it, so that a folder
    of this name is whole. What was there is gone after, and stays if the block fails."""
    beside, before = (folder.with_name(f".{folder.name}.{what}") for what in ("new", "old"))
    for leftover in (beside, before):
        shutil.rmtree(leftover, ignore_errors=True)
    beside.mkdir(parents=True)
    yield beside
    for path in [*beside.rglob("*"), beside]:
        sync(path)
    if folder.exists():
        folder.rename(before)
    beside.rename(folder)
    sync(folder.parent)
    shutil.rmtree(before, ignore_errors=True)


def _write_config(student: Student, folder: Path, origin: Origin) -> None:
    """timm's config with this student's own size and licence instead of the architecture's."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    # transformers passes num_classes by itself and would see it twice.
    config["model_args"] = {k: v for k, v in student.arguments.items() if k != "num_classes"}
    kept = ("mean", "std", "interpolation", "crop_pct", "crop_mode", "first_conv", "classifier")
    cfg = {k: v for k, v in config["pretrained_cfg"].items() if k in kept}
    cfg |= {
        "tag": origin.run,
        "custom_load": False,
        "input_size": [3, student.size, student.size],
        "fixed_input_size": False,
        "num_classes": 0,
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "license": origin.licence,
    }
    config["pretrained_cfg"] = cfg
    path.write_text(json.dumps(config, indent=2) + "\n")
