"""A run folder as a run writes it, with names that would break a careless page."""

import json
import math
from pathlib import Path

import numpy as np
import yaml
from PIL import Image
from safetensors.numpy import save_file

SCRIPT = "<script>alert(1)<script>"
IMAGE = "\"'><img src=x onerror=alert(2)>"
BRACES = "{{ 7 * 7 }}{% raw %} & \N{GREEK SMALL LETTER ALPHA}"
TEACHERS = ("dinov2", SCRIPT, "a-teacher-with-quite-a-long-name")
STUDENTS = ("vit", IMAGE)
STAGE = "multires<b>"
METRICS = (
    ("knn", "accuracy", "higher"),
    ("attributes", "recall", "higher"),
    ("segmentation", "miou", "higher"),
    ("depth", "rmse", "lower"),
    ("image_retrieval", "map", "higher"),
    ("image_retrieval", "recall_at_1", "higher"),
    ("text_retrieval", "text_to_image_r1", "higher"),
    ("text_retrieval", "text_to_image_r5", "higher"),
    ("text_retrieval", "image_to_text_r1", "higher"),
    ("text_retrieval", "image_to_text_r5", "higher"),
    ("masks", "iou", "higher"),
    ("affinity", "auc", "higher"),
)


def write_run(folder: Path, *, validation=True, pictures=True, environment=True) -> Path:
    """Write the run and give its folder back."""
    folder.mkdir(parents=True)
    recipe = {
        "name": SCRIPT,
        "teachers": {name: {"family": "dinov2", "weights": IMAGE} for name in TEACHERS},
        "stages": {
            "proxy": {"students": {"proxy": {"proxy": True}}},
            STAGE: {"students": {name: {"arch": BRACES} for name in STUDENTS}},
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    if environment:
        (folder / "environment.json").write_text(
            json.dumps(
                {
                    "versions": {"torch": "2.9.0", "timm": "1.0.26"},
                    "device": f"cpu {SCRIPT}",
                    "command": ["distill", "run", "recipes/quickstart.yaml", IMAGE, "x" * 300],
                    "git": None,
                    "seconds": {"proxy": 200.04, STAGE: 101.4, "probes": 40.0},
                }
            )
        )
    _write_stage(folder / "proxy", ["proxy"], TEACHERS)
    _write_stage(folder / STAGE, STUDENTS, ["proxy/proxy"])
    if validation:
        (folder / "validation.json").write_text(json.dumps(_validation()))
    if pictures:
        _write_pictures(folder / "pictures")
    return folder


def _write_stage(folder: Path, students, teachers) -> None:
    folder.mkdir()
    lines = []
    for step in range(0, 400, 20):
        for place, student in enumerate(students):
            fit = 1 - math.exp(-(step + 20) / (120 + 60 * place))
            lines.append(
                {
                    "step": step,
                    "student": student,
                    "loss": 2.2 - 1.5 * fit + 0.05 * math.sin(step),
                    "lr": 1e-3,
                    "images_per_second": 310.0,
                    "data_wait": 0.01,
                    "teachers": {
                        teacher: {
                            kind: {"loss": 1 - fit, "explained_variance": fit * share - 0.02 * i}
                            for kind, share in (("summary", 0.85), ("dense", 0.7))
                        }
                        for i, teacher in enumerate(teachers)
                    },
                }
            )
    lines[7]["loss"] = float("nan")
    lines.append(dict(lines[-1]))  # logged again after a restart
    text = "\n".join(json.dumps(line) for line in lines)
    (folder / "log.jsonl").write_text(text + '\n{"step": 400, "stu')  # stopped in the midst
    for student in students:
        (folder / student).mkdir()
        (folder / student / "config.json").write_text(json.dumps({"architecture": BRACES}))
        weights = {"a": np.zeros((300, 4), np.float16), "bn.running_mean": np.zeros(7, np.float32)}
        save_file(weights, folder / student / "model.safetensors")


def _validation() -> dict:
    models = [(name, "teacher", "") for name in TEACHERS]
    models += [("proxy/proxy", "proxy", "proxy")]
    models += [(f"{STAGE}/{name}", "student", STAGE) for name in STUDENTS]
    models = [(f"untrained {name}", "untrained", "") for name in STUDENTS] + models
    level = {"teacher": 0.8, "proxy": 0.78, "student": 0.6, "untrained": 0.2}
    rows = []
    for place, (model, role, stage) in enumerate(models):
        for number, (task, metric, better) in enumerate(METRICS):
            value = level[role] + (0.1 if place - 2 == number % 3 else 0.0)
            row = {
                "model": model,
                "role": role,
                "stage": stage,
                "seed": 0,
                "task": task,
                "dataset": "scenes",
                "split": "test",
                "image_size": 64,
                "samples": 1024,
                "metric": metric,
                "value": 100 * value if better == "higher" else 1 - value,
                "better": better,
                "protocol": "linear",
                "seconds": 1.0,
            }
            if task == "masks" and role == "teacher" and place == 3:
                row |= {"value": None, "reason": f"no mask decoder {IMAGE}"}
            rows.append(row)
    untrained = {f"{STAGE}/{name}": f"untrained {name}" for name in STUDENTS}
    untrained["proxy/proxy"] = "untrained vit"
    return {"untrained_of": untrained, "rows": rows}


def _write_pictures(folder: Path) -> None:
    folder.mkdir()
    groups = {
        "Image": ["input"],
        "Dense features": [*TEACHERS, "proxy/proxy", *STUDENTS],
        "Segmentation": ["truth", *STUDENTS],
        "Depth": ["truth", *STUDENTS],
        "Mask": ["truth", *STUDENTS],
    }
    rows, number = [], 0
    for row in range(3):
        cells = []
        for group, titles in groups.items():
            for title in titles:
                hue = np.linspace(0, 255, 128)[None, :, None] * np.array([1, 0.5, number % 7 / 7])
                pixels = np.broadcast_to(hue, (128, 128, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
                cells.append({"title": title, "group": group, "file": f"{number}.png"})
                number += 1
        rows.append({"caption": f"a large red circle {SCRIPT} {row}", "cells": cells})
    titles = [f"{cell['group']}: {cell['title']}" for cell in rows[0]["cells"]]
    legends = {f"Segmentation {SCRIPT}": [{"name": IMAGE, "colour": "#e69f00"}]}
    text = json.dumps({"columns": titles, "rows": rows, "legends": legends})
    (folder / "pictures.json").write_text(text)


def write_bench(run: Path, name: str, speed: float = 1.0, sizes=(64, 96)) -> None:
    """bench.json of one of STUDENTS in every format, and its files' probes."""
    student, rows = f"{STAGE}/{name}", []
    takes = {"torch": 4.0, "torch-export": 4.2, "onnx": 2.0, "executorch": 3.0}
    takes |= {"onnx-int8-dynamic": 1.0, "onnx-int8-static": 1.1, "executorch-int8-dynamic": 2.1}
    for size in sizes:
        for batch, threads in ((1, 1), (8, 1), (1, 2), (8, 2)):
            for model, form, ms in (
                *((student, form, ms / speed) for form, ms in takes.items()),
                (SCRIPT, "torch", 30.0),
            ):
                row = {"model": model, "format": form, "size": size, "batch": batch}
                ms *= (size / 64) ** 2 * batch / threads
                row |= {"threads": threads, "median_ms": ms, "runs": 9, "images_per_s": 1000 / ms}
                first = (batch, threads) == (1, 1)
                row |= {"peak_mb": 321.4 if first else None, "library_mb": 123 if first else None}
                rows.append(row)
    machine = {"processor": f"Z80 {IMAGE}", "cores": 2, "versions": {"torch": "2.9.0"}}
    (run / student / "bench.json").write_text(json.dumps({"machine": machine, "rows": rows}))
    for place, form in enumerate(form for form in takes if form != "torch"):
        kind = None if "int8" not in form else form[form.index("int8") :]
        form = form if kind is None else form[: -len(kind) - 1]
        suffix = {"onnx": ".onnx", "executorch": ".pte", "torch-export": ".pt2"}[form]
        file = run / student / form / f"model.{kind}{suffix}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"")
        probes = {"gap_closed": {"float_value": 0.5, "value": 0.4, "loss": 0.004 * place}}
        about = {"format": form, "quantization": kind, "probes": probes if kind else None}
        file.with_suffix(".json").write_text(json.dumps(about))
