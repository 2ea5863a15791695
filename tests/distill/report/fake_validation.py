"""The folder of a validation as `distill validate` writes it: four models, three data sets, and
pictures drawn from the built-in scenes, with names that would break a careless page."""

import json
from pathlib import Path

import numpy as np
import torch
from fake_run import BRACES, IMAGE, SCRIPT

from distill.datasets.parts import IGNORE, KeypointPair
from distill.report.correspondences import correspondence_group
from distill.report.gallery import write_pictures
from distill.report.panels import depth_group, feature_group, mask_group, segmentation_group
from distill.report.retrieval_rows import Answer, retrieval_group
from distill.scenes.dataset import Scenes
from distill.scenes.generate import FAR, KINDS, NEAR

LONG = "org/a-model-with-quite-a-long-name.patch16"
MODELS = (
    ("dinov2-s", "teacher", "facebook/dinov2-small", 22_056_576, 384),
    (LONG, "teacher", f"{LONG}_224.v2", 92_884_224, 768),
    (SCRIPT, "teacher", IMAGE, 86_000_000, 768),
    ("ours/vit-t16", "student", "runs/ours/students/vit-t16", 5_717_416, 192),
)
SIZES = (112, 224, 336, 448)
NO_TEXT = "has no text tower, and reaches no teacher's space that has one"


def results() -> dict:
    """results.json."""
    rows = []

    def add(dataset, task, metric, values, size=224, better="higher", samples=5000, **more):
        for place, (value, (name, role, *_)) in enumerate(zip(values, MODELS, strict=True)):
            row = {
                "model": name,
                "role": role,
                "task": task,
                "dataset": dataset,
                "split": "test",
                "image_size": size if isinstance(size, int) else size[place],
                "samples": samples,
                "metric": metric,
                "value": value,
                "better": better,
                "protocol": f"{task} as the field does it: every number and its source, in one "
                "line that is long (a paper, arXiv 0000.00000, section 3)",
                "seconds": 12.0,
            }
            if value is None:
                row["reason"] = NO_TEXT
            rows.append(row | (more if place == 0 else {}))

    published = {"published": 79.0, "published_source": "DINOv2, arXiv 2304.07193, table 4"}
    add("imagenet", "knn", "accuracy_k20", (78.91, 76.4, 74.2, 70.13), samples=50_000, **published)
    add("imagenet", "linear", "summary_top1", (81.0, 80.2, 79.5, 74.4), samples=50_000)
    add("imagenet", "zero_shot", "top1", (None, 76.2, 71.1, 68.3), samples=50_000)
    for place, size in enumerate(SIZES):
        grow = np.array([0.0, 7.5, 10.0, 11.2])[place]
        add("ade20k", "segmentation", "miou", (33.1 + grow, 26.0 + grow, 25.2 + grow, 28.9), size)
        rmse = (0.61 - grow / 60, 0.72 - grow / 50, 0.70 - grow / 70, 0.58 - grow / 90)
        add("nyu", "depth", "rmse", rmse, size, "lower", 654)
    add("spair", "correspondence", "pck", (52.3, 31.8, 29.4, 47.7), (448, 512, 512, 512))
    models = [
        {
            "name": name,
            "role": role,
            "source": source,
            "parameters": parameters,
            "summary_dim": width,
            "dense_dim": width,
        }
        for name, role, source, parameters, width in MODELS
    ]
    created = "2026-11-21T13:08:25+0000"
    return {"name": f"field {BRACES}", "created": created, "models": models, "rows": rows}


def picture_groups(count: int = 3) -> list:
    """Groups of all kinds, of `count` scenes; what models answer is the truth, disturbed."""
    scenes = Scenes(8, 64, seed=5)
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.from_numpy(np.array(image)) for image in scenes.images]
    shown = pictures[:count]
    names = [name for name, *_ in MODELS]
    classes = torch.from_numpy(np.array(scenes.segmentation)).long()[:count]
    one_hot = torch.nn.functional.one_hot(classes, 9).permute(0, 3, 1, 2).float()
    dense = {}
    for place, (name, *_, width) in enumerate(MODELS):
        grid = (16, 8, 12, 16)[place]
        maps = torch.nn.functional.adaptive_avg_pool2d(one_hot, grid).permute(0, 2, 3, 1)
        mixed = maps @ torch.randn(9, width, generator=generator)
        dense[name] = mixed + 0.3 * place * torch.randn(mixed.shape, generator=generator)
    dense[LONG][0, 3, 4] = 400.0
    truth = classes.clone()
    truth[:, :3] = IGNORE
    segmented = {name: list(classes.roll(3 * place, 2)) for place, name in enumerate(names)}
    depth = torch.from_numpy(np.array(scenes.depth)).float()[:count]
    known = depth.clone()
    known[:, :, :3] = 0
    deep = {name: list(depth * (1 + 0.1 * place)) for place, name in enumerate(names)}
    masks, points = [], []
    for instances in scenes.instances[:count]:
        numbers, pixels = np.unique(instances[instances > 0], return_counts=True)
        mask = instances == numbers[pixels.argmax()]
        masks.append(mask)
        middle = np.argwhere(mask)[mask.sum() // 2]
        points.append((int(middle[1]), int(middle[0])))
    decoded = {name: [np.roll(m, 2 * k, 1) for m in masks] for k, name in enumerate(names)}
    pairs, matches = [], {name: [] for name in names}
    for number in range(2):
        points_there = torch.rand(9, 2, generator=generator) * 63
        pairs.append(KeypointPair(number, number, points_there, points_there, 50.0, "scene"))
        for place, name in enumerate(names):
            off = 2 * place * torch.randn(9, 2, generator=generator)
            matches[name].append((points_there + off).clamp(0, 63))
    found = {
        name: [
            [
                Answer(pictures[(q + k + place) % 8], (None, True, False)[(k + place) % 3])
                for k in range(5)
            ]
            for q in range(2)
        ]
        for place, name in enumerate(names)
    }
    told = [Answer(scenes.captions[k], k == 0) for k in range(5)]
    captions = {name: [told] for name in names[:2]}
    return [
        feature_group(shown, dense, 128),
        segmentation_group(shown, list(truth), segmented, ("background", *KINDS)),
        depth_group(shown, list(known), deep, NEAR, FAR),
        mask_group(shown, masks, decoded, points),
        correspondence_group(pictures.__getitem__, pairs, matches),
        retrieval_group("Image retrieval", pictures[:2], found),
        retrieval_group(f"Captions of a picture {SCRIPT}", pictures[:1], captions),
    ]


def write_validation(folder: Path, *, pictures=True) -> Path:
    """Write the folder and give it back."""
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results()))
    if pictures:
        write_pictures(picture_groups(), folder / "pictures")
    return folder
