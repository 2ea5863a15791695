"""Wall time of the quickstart by part, and its peak memory.

    python benchmarks/quickstart.py [key=value ...]

One JSON object a line: {"name", "value", "unit", "goal", "holds"}. Peak memory is an upper bound:
the most of this process plus the most of any loader process, though they share pages.
"""

import json
import resource
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

# A benchmark beside this one is called as the package `teachers` is, and this folder comes first.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]

spent: dict[str, float] = {}
inside: list[str] = []


@contextmanager
def counted(part):
    """Time of a part, without the parts inside it."""
    began = time.perf_counter()
    inside.append(part)
    try:
        yield
    finally:
        took = time.perf_counter() - began
        inside.pop()
        spent[part] = spent.get(part, 0.0) + took
        if inside:
            spent[inside[-1]] = spent.get(inside[-1], 0.0) - took


def wrap(owner, name, part):
    plain = getattr(owner, name)

    def timed(*args, **kwargs):
        if "probes" in inside:  # a teacher that is being probed is a probe's cost
            return plain(*args, **kwargs)
        with counted(part):
            return plain(*args, **kwargs)

    setattr(owner, name, timed)


def main():
    with tempfile.TemporaryDirectory() as folder, counted("the rest"):
        import distill.runner
        from distill.engine.stage import Stage
        from teachers import Teacher

        wrap(Teacher, "forward", "teachers")
        wrap(Stage, "_step", "students")
        wrap(distill.runner, "validate_run", "probes")
        distill.runner.run(
            "quickstart", overrides=sys.argv[1:], run_dir=f"{folder}/run", quiet=True
        )
    for part, seconds in spent.items():
        report(f"quickstart: {part}", round(seconds, 1), "s", None)
    report("quickstart: wall time", round(sum(spent.values()), 1), "s", 360)
    peak = sum(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    report("quickstart: peak memory", round(peak / 2**20, 2), "GiB", 4)


def report(name, value, unit, goal):
    line = {"name": name, "value": value, "unit": unit, "goal": goal}
    print(json.dumps({**line, "holds": None if goal is None else value <= goal}), flush=True)


if __name__ == "__main__":
    main()
