"""A student's folder: what timm, transformers and this project load."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill.files import sync, writing
from distill.lineage import warnings
from students import Spaces, Student


@dataclass
class Origin:
    """Where a student comes from, for its card: run, stage, teachers and their licences, data."""

    run: str
    name: str
    stage: str
    steps: int
    image_sizes: list[int]
    licence: str
    author: str = ""
    teachers: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)


def export_student(student: Student, spaces: Spaces, folder: Path, origin: Origin) -> None:
    """Write config.json, model.safetensors, adapters.safetensors, adapters.json and README.md.

    They are written beside, synced and renamed, so that a folder of this name is whole. It loads
    with `timm.create_model("local-dir:FOLDER", pretrained=True)` and with
    `transformers.AutoModel.from_pretrained(FOLDER)`.

    Raises:
        UserError: if there is no room, or no right to.
    """
    from timm.models import save_for_hf

    beside, before = (folder.with_name(f".{folder.name}.{what}") for what in ("new", "old"))
    with writing(folder):
        for leftover in (beside, before):
            shutil.rmtree(leftover, ignore_errors=True)
        beside.mkdir(parents=True)
        save_for_hf(
            student.model,
            str(beside),
            model_args=student.arguments,
            safe_serialization=True,
        )
        _write_config(student, beside, origin)
        spaces.save(
            beside,
            {
                "student": f"{origin.stage}/{origin.name}",
                "steps": origin.steps,
                "teachers": origin.teachers,
            },
        )
        (beside / "README.md").write_text(model_card(student, spaces, origin))
        for file in beside.iterdir():
            sync(file)
        sync(beside)
        if folder.exists():
            folder.rename(before)
        beside.rename(folder)
        sync(folder.parent)
        shutil.rmtree(before, ignore_errors=True)


def exported_steps(folder: Path) -> int:
    """Training steps of an exported student, 0 if there is none."""
    try:
        return int(json.loads((folder / "adapters.json").read_text())["steps"])
    except (OSError, KeyError, ValueError):
        return 0


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


def model_card(student: Student, spaces: Spaces, origin: Origin) -> str:
    """README.md of a student's folder, with the front matter that the Hub reads."""
    sizes = ", ".join(str(size) for size in origin.image_sizes)
    teachers = "\n".join(
        f"| {name} | {about['weights']} | {about['licence'] or 'unknown'} |"
        for name, about in origin.teachers.items()
    )
    bound = "".join(f"- {line}\n" for line in warnings(origin.teachers))
    bound = f"\nBefore this student is given away, read the licences:\n\n{bound}" if bound else ""
    reached = ", ".join(f"`{teacher}`" for teacher, _ in spaces.routes())
    data = ", ".join(f"{name} (`{source}`)" for name, source in origin.data.items())
    dense = (
        "patch tokens after the final norm,\n"
        "`model.forward_features(x)[:, model.num_prefix_tokens:]`"
        if hasattr(student.model, "num_prefix_tokens")
        else "the map after the final norm,\n`model.head.norm(model.forward_features(x))`"
    )
    author = f"author: {origin.author}\n" if origin.author else ""
    return f"""---
library_name: timm
pipeline_tag: image-feature-extraction
license: {origin.licence}
tags:
- image-feature-extraction
- distillation
{author}---

# {origin.run}: {origin.stage}/{origin.name}

A {student.arch} encoder of {student.parameter_count:,} parameters, distilled for
{origin.steps:,} steps at {sizes} pixels.

| learnt from | weights | licence |
|---|---|---|
{teachers}

Images: {data}.
{bound}
```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
```

`model(x)` is the summary, one vector of {student.summary_dim} an image. Dense features, one vector
of {student.dense_dim} per {student.stride} x {student.stride} pixels, are {dense}.
Pixels are RGB in [0, 1], resized to a multiple of {student.stride} (trained at {sizes}), minus
{list(student.mean)}, divided by {list(student.std)}.
`transformers.AutoModel.from_pretrained("FOLDER")` loads the same.

`adapters.safetensors` and `adapters.json` hold the way from these features into the feature space
of {reached}.
"""
