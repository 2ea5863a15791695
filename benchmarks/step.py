"""What the engine adds to a training step: a whole step over the sum of its bare parts.

    python benchmarks/step.py [--batch N] [--rounds N]

Teachers of ViT-B size with random weights (dinov2 and siglip at 224 pixels, SAM's encoder at 256),
students ViT-S and ConvNeXt-T with EUPE's adapters, bfloat16; batch 8 on a CPU and 256 on a GPU.
(a) a step of the engine: the batch from the loader, colour changes, teachers, targets, students,
losses, clipping, update, log. (b) each teacher's bare forward, each student's forward and backward
with its adapters, its optimiser. Both alternate in one process on the same images.
One JSON object a line: {"name", "value", "unit", "goal", "holds"}.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

# This folder comes first on the path, and a file in it is called as the package `teachers` is.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]

from accelerate import Accelerator  # noqa: E402

from distill.data.sources import open_sources  # noqa: E402
from distill.engine.interruption import StopRequest  # noqa: E402
from distill.engine.learner import planned_students  # noqa: E402
from distill.engine.log import StageLog  # noqa: E402
from distill.engine.stage import Stage  # noqa: E402
from distill.engine.targets import TargetTeacher  # noqa: E402
from distill.progress import Progress  # noqa: E402
from distill.recipe.load import from_dict  # noqa: E402
from teachers import TeacherSpec, load_teacher  # noqa: E402

GOAL = 1.05
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def save_teachers(home: Path) -> dict[str, tuple[str, ...]]:
    """Random checkpoints as the library saves them; family to the tokens that it gives."""
    import transformers as t

    vision = {"patch_size": 16, "image_size": 224, "intermediate_size": 3072}
    sam_size = {"patch_size": 16, "image_size": 256}
    sam = {"global_attn_indexes": [2, 5, 8, 11], "mlp_dim": 3072, "num_pos_feats": 128}
    models = {
        "dinov2": lambda: t.Dinov2Model(t.Dinov2Config(**BASE, patch_size=14, image_size=224)),
        "siglip": lambda: t.SiglipVisionModel(t.SiglipVisionConfig(**BASE, **vision)),
        "sam": lambda: t.SamModel(
            t.SamConfig(vision_config=BASE | sam | sam_size, prompt_encoder_config=sam_size)
        ),
    }
    for name, build in models.items():
        build().save_pretrained(home / name)
        (home / name / "preprocessor_config.json").write_text(json.dumps(HALF))
    return {"dinov2": ("summary", "dense"), "siglip": ("summary", "dense"), "sam": ("dense",)}


def recipe_of(home: Path, tokens: dict[str, tuple[str, ...]], batch: int):
    """One stage, two students, three teachers."""
    teachers = {
        name: {"family": name, "weights": str(home / name), "tokens": list(kinds)}
        for name, kinds in tokens.items()
    }
    student = {"teachers": list(teachers)}
    train = {"steps": 10_000, "batch_size": batch, "precision": "bf16", "log_every": 20}
    return from_dict(
        {
            "name": "step",
            "data": {"train": {"scenes": {"source": "scenes:count=256,size=224"}}},
            "teachers": teachers,
            "stages": {
                "stage": {
                    "students": {
                        "vit": {"arch": "vit_small_patch16_dinov3_qkvb", **student},
                        "convnext": {"arch": "convnext_tiny", **student},
                    },
                    "image_sizes": [224],
                    "train": train,
                }
            },
            "validate": None,
        }
    )


class Parts:
    """The bare parts of a step."""

    def __init__(self, stage, trainees):
        self.stage, self.trainees = stage, trainees
        self.seconds: dict[str, float] = {}

    def run(self, pixels):
        """Each part once; its seconds by name."""
        self.seconds = {}
        for name, target in self.stage.teachers.items():
            teacher = target.teacher
            shown = teacher.shown(pixels)
            with self._timed(name), torch.no_grad():
                encoder = getattr(teacher.model, "vision_encoder", teacher.model)
                encoder(shown)
        for trainee in self.trainees:
            with self._timed(trainee.plan.name):
                with torch.autocast(pixels.device.type, torch.bfloat16):
                    predictions = trainee.learner(pixels, 224)
                outputs = [
                    tokens
                    for features in predictions.values()
                    for tokens in (features.summary, features.dense)
                    if tokens is not None
                ]
                gradients = [torch.full_like(tokens, 1e-6) for tokens in outputs]
                torch.autograd.backward(outputs, gradients)
                trainee.optimiser.step()
                trainee.optimiser.zero_grad(set_to_none=True)

    def _timed(self, name):
        return Timed(self.seconds, name, self.stage.device)


class Timed:
    """Seconds of a block, the device's work included."""

    def __init__(self, into, name, device):
        self.into, self.name, self.device = into, name, device

    def __enter__(self):
        synchronise(self.device)
        self.began = time.perf_counter()

    def __exit__(self, *_):
        synchronise(self.device)
        self.into[self.name] = time.perf_counter() - self.began


def synchronise(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def report(name, value, unit, goal=None):
    holds = None if goal is None else value <= goal
    line = {"name": name, "value": round(value, 4), "unit": unit, "goal": goal, "holds": holds}
    print(json.dumps(line), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int, default=12)
    arguments = parser.parse_args()
    accelerator = Accelerator()
    device = accelerator.device
    batch = arguments.batch or (256 if device.type == "cuda" else 8)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        tokens = save_teachers(home)
        recipe = recipe_of(home, tokens, batch)
        teachers = {
            name: TargetTeacher.of(
                name,
                load_teacher(
                    TeacherSpec(name, str(home / name), tokens=kinds, dtype="bfloat16"), device
                ),
                [],
                "standardise",
            )
            for name, kinds in tokens.items()
        }
        stage = Stage(
            recipe,
            "stage",
            teachers,
            open_sources(recipe.data),
            home / "run",
            home / "run" / "checkpoint",
            accelerator,
            Progress(shown=False),
            StopRequest(accelerator),
        )
        trainees = [stage.prepare(plan) for plan in planned_students(recipe, "stage")]
        for trainee in trainees:
            trainee.learner.train()
        compare(stage, trainees, batch, arguments.rounds)


def compare(stage, trainees, batch, rounds):
    """Run both, in turn first and second, and print what they took."""
    device, parts = stage.device, Parts(stage, trainees)
    # What the parts do to gradients and weights must not reach the engine's steps.
    stream = stage.pixels(0, 10_000)
    log = StageLog(stage, trainees, 0)
    whole, bare, by_part = [], [], {}
    kept = None

    def a():
        nonlocal kept
        taken = {}
        with Timed(taken, "whole", device):
            step, loaded, pixels = next(stream)
            log.saw(loaded, waited=0.0)
            stage.step(trainees, step, loaded, pixels)
            if (step + 1) % stage.config.train.log_every == 0:
                log.write(step + 1)
        kept = pixels
        return taken["whole"]

    def b():
        for trainee in trainees:
            trainee.optimiser.found_inf = None
        parts.run(kept)
        return sum(parts.seconds.values())

    for round_number in range(rounds + 2):
        order = (a, b) if round_number % 2 == 0 or kept is None else (b, a)
        took = {run: run() for run in order}
        if round_number < 2:  # the first passes allocate
            continue
        whole.append(took[a])
        bare.append(took[b])
        for name, seconds in parts.seconds.items():
            by_part.setdefault(name, []).append(seconds)
    for name, seconds in by_part.items():
        report(f"step: {name}, bare", statistics.median(seconds) * 1e3, "ms")
    report("step: sum of the bare parts", statistics.median(bare) * 1e3, "ms")
    report("step: whole", statistics.median(whole) * 1e3, "ms")
    report("step: images per second", batch / statistics.median(whole), "images/s")
    ratio = statistics.median(w / p for w, p in zip(whole, bare, strict=True))
    report("step: whole / sum of parts", ratio, "ratio", GOAL)
    if device.type == "cuda":
        report("step: peak memory", torch.cuda.max_memory_allocated() / 2**30, "GiB")


if __name__ == "__main__":
    main()
