"""What a comparison of seven teacher subsets costs, against seven runs, and on a warm cache.

    python benchmarks/compare.py [--batch N] [--rounds N]

Three teachers of ViT-B size with random weights (dinov2, siglip, SAM's encoder), a ViT-T student
for each of their seven subsets, EUPE's adapters, bfloat16. T: all three teachers on a batch. S: one
student's whole step (forward, loss, backward, update) with its adapters, the mean over the seven,
targets given. In one process and in turn: a step of the comparison, the same step from a warm
cache, a step of each of the seven runs, T, and the students' parts alone.
One JSON object a line: {"name", "value", "unit", "goal", "holds"}.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
# This folder comes first on the path, and a file in it is called as the package `teachers` is.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != HERE.resolve()]
sys.path.append(str(HERE))

from accelerate import Accelerator  # noqa: E402
from step import Timed, save_teachers  # noqa: E402

from distill.cache import FeatureCache  # noqa: E402
from distill.data.sources import open_sources  # noqa: E402
from distill.engine.cached import CachedTeacher  # noqa: E402
from distill.engine.interruption import StopRequest  # noqa: E402
from distill.engine.learner import planned_students  # noqa: E402
from distill.engine.stage import Stage  # noqa: E402
from distill.engine.targets import TargetTeacher  # noqa: E402
from distill.optim import learning_rate  # noqa: E402
from distill.progress import Progress  # noqa: E402
from distill.recipe.load import from_dict  # noqa: E402
from teachers import TeacherSpec, load_teacher  # noqa: E402


def recipe_of(home, tokens, batch):
    """One stage with a ViT-T for each subset."""
    names = list(tokens)
    subsets = [c for n in (1, 2, 3) for c in itertools.combinations(names, n)]
    students = {
        "-".join(subset): {"arch": "vit_tiny_patch16_224", "teachers": list(subset)}
        for subset in subsets
    }
    train = {"steps": 10_000, "batch_size": batch, "precision": "bf16"}
    teachers = {
        name: {"family": name, "weights": str(home / name), "tokens": list(kinds)}
        for name, kinds in tokens.items()
    }
    return from_dict(
        {
            "name": "compare",
            "data": {"train": {"scenes": {"source": "scenes:count=256,size=224"}}},
            "teachers": teachers,
            "stages": {"stage": {"students": students, "image_sizes": [224], "train": train}},
            "validate": None,
        }
    )


class Bench:
    """The stages that are compared, on the same batches."""

    def __init__(self, home, batch):
        self.accelerator = Accelerator()
        self.device = self.accelerator.device
        tokens = save_teachers(home)
        self.recipe = recipe_of(home, tokens, batch)
        self.loaded = {
            name: load_teacher(
                TeacherSpec(name, str(home / name), tokens=kinds, dtype="bfloat16"), self.device
            )
            for name, kinds in tokens.items()
        }
        self.sources = open_sources(self.recipe.data)
        self.home = home
        plans = planned_students(self.recipe, "stage")
        self.whole = self.stage(tokens)
        self.trainees = [self.whole.prepare(plan) for plan in plans]
        self.alone = [self.stage(plan.config.teachers) for plan in plans]
        self.cached = self.stage(tokens)
        self.cache = FeatureCache(home / "cache")
        for name, target in self.cached.teachers.items():
            target.cached = CachedTeacher(
                self.cache, target.teacher, name, self.recipe.data, self.cached.canvas
            )

    def stage(self, names):
        """A stage with these teachers."""
        teachers = {
            name: TargetTeacher.of(name, self.loaded[name], [], "standardise") for name in names
        }
        return Stage(
            self.recipe,
            "stage",
            teachers,
            self.sources,
            self.home / "run",
            self.home / "run" / "checkpoint",
            self.accelerator,
            Progress(shown=False),
            StopRequest(self.accelerator),
        )

    def measure(self, step, batch, pixels):
        """Seconds of each part on one batch."""
        seconds = {}
        with Timed(seconds, "compare", self.device):
            self.whole.step(self.trainees, step, batch, pixels)
        self.cached.show(step, batch, pixels)
        with Timed(seconds, "cached", self.device):
            self.cached.step(self.trainees, step, batch, pixels)
        with Timed(seconds, "separate", self.device):
            for stage, trainee in zip(self.alone, self.trainees, strict=True):
                stage.step([trainee], step, batch, pixels)
        with Timed(seconds, "teachers", self.device):
            (lesson,) = self.whole.lessons(step, batch, pixels)
        with Timed(seconds, "students", self.device):
            for trainee in self.trainees:
                self.whole.learn(trainee, step, lesson)
                trainee.update(learning_rate(step, self.train), self.train)
        return seconds

    @property
    def train(self):
        """The stage's optimisation."""
        return self.recipe.stages["stage"].train


def report(name, value, unit, goal=None, least=False):
    holds = None if goal is None else (value >= goal if least else value <= goal)
    goal = None if goal is None else round(goal, 4)
    line = {"name": name, "value": round(value, 4), "unit": unit, "goal": goal, "holds": holds}
    print(json.dumps(line), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.batch)
        found = []
        for step, batch, pixels in bench.whole.pixels(0, arguments.rounds + 1):
            seconds = bench.measure(step, batch, pixels)
            if step:  # the first one allocates
                found.append(seconds)
        bench.cache.close()

    def ratio(top, bottom):
        return statistics.median(top(s) / bottom(s) for s in found)

    for name in found[0]:
        report(f"compare: {name}", statistics.median(s[name] for s in found) * 1e3, "ms")
    cost = ratio(lambda s: s["compare"], lambda s: s["teachers"] + s["students"])
    report("compare: one comparison / (T + 7 S)", cost, "ratio", 1.1)
    gain = ratio(lambda s: s["separate"], lambda s: s["compare"])
    ideal = ratio(
        lambda s: 4 * s["teachers"] + s["students"], lambda s: s["teachers"] + s["students"]
    )
    report("compare: seven runs / one comparison", gain, "ratio", 0.9 * ideal, least=True)
    warm = ratio(lambda s: s["cached"], lambda s: s["students"])
    report("compare: on a warm cache / 7 S", warm, "ratio", 1.15)


if __name__ == "__main__":
    main()
