"""What a step of each published method costs: the stages of recipes/methods.yaml, interleaved.

    python benchmarks/methods.py [--rounds N]

Same student, same teachers, same images, one seed: a whole step of the engine, teachers included,
and its ratio to a step of `direct`, EUPE's loss straight from the teachers. The student of `eupe`
learns from a proxy; the proxy's own steps are a line of theirs.
One JSON object a line: {"name", "value", "unit", "goal", "holds"}.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

# This folder comes first on the path, and a file in it is called as the package `teachers` is.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]

from accelerate import Accelerator  # noqa: E402

from distill import run  # noqa: E402
from distill.engine.interruption import StopRequest  # noqa: E402
from distill.engine.learner import planned_students  # noqa: E402
from distill.folder import RunFolder  # noqa: E402
from distill.progress import Progress  # noqa: E402
from distill.recipe.load import find_recipe, load_recipe  # noqa: E402
from distill.runner import Runner  # noqa: E402


class Method:
    """A stage of the recipe, ready for steps."""

    def __init__(self, runner, name):
        self.name, self.seconds = name, []
        plans = planned_students(runner.recipe, name)
        self.stage = runner.stage(name, plans, runner.folder.path / name / "unused")
        self.trainees = [self.stage.prepare(plan) for plan in plans]
        self.stage.calibrate_normalisers()
        self.stage.share_normalisers(self.trainees)
        self.stream = self.stage.pixels(0, 10_000)
        self.adapters = self.trainees[0].adapter_parameters

    def step(self, timed):
        """One step, the loading of its images left out."""
        step, batch, pixels = next(self.stream)
        began = time.perf_counter()
        self.stage.step(self.trainees, step, batch, pixels)
        if timed:
            self.seconds.append(time.perf_counter() - began)
        for trainee in self.trainees:
            trainee.tally.clear()


def report(name, value, unit):
    line = {"name": name, "value": round(value, 4), "unit": unit, "goal": None, "holds": None}
    print(json.dumps(line), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    recipe = load_recipe(find_recipe("methods"))
    for stage in recipe.stages.values():
        stage.train.steps = stage.calibration_batches = 2
        stage.train.warmup = 0
        for student in stage.students.values():
            student.seeds = []
    recipe.validate = None
    with tempfile.TemporaryDirectory() as folder:
        run(recipe, run_dir=folder, quiet=True)  # the proxy has to be there
        accelerator = Accelerator()
        stop = StopRequest(accelerator)
        runner = Runner(recipe, RunFolder(Path(folder)), accelerator, Progress(shown=False), stop)
        methods = [Method(runner, name) for name in recipe.stages]
        for number in range(rounds + 2):
            for method in methods:
                method.step(timed=number >= 2)
        medians = {method.name: statistics.median(method.seconds) for method in methods}
        for method in methods:
            report(f"{method.name}: step", 1000 * medians[method.name], "ms")
            ratio = medians[method.name] / medians["direct"]
            report(f"{method.name}: step / that of direct", ratio, "ratio")
            report(f"{method.name}: adapters", method.adapters, "parameters")


if __name__ == "__main__":
    main()
