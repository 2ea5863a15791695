"""A comparison whose scores are known, for the tests of its answer."""

from distill.compare.expansion import expand
from distill.recipe.schema import (
    CompareConfig,
    DataConfig,
    Recipe,
    SourceConfig,
    StageConfig,
    StudentConfig,
    TeacherConfig,
    ValidateConfig,
)

TASKS = {
    "knn": (("accuracy", "higher"),),
    "depth": (("rmse", "lower"),),
    "image_retrieval": (("map", "higher"), ("recall_at_1", "higher")),
    "masks": (("iou", "higher"),),
}
UNTRAINED = {"higher": 20.0, "lower": 1.0}
TEACHER = {"higher": 80.0, "lower": 0.4}


def recipe(teachers=("dinov2", "siglip", "sam"), students=("vit",), tasks=tuple(TASKS)):
    return Recipe(
        name="planted",
        data=DataConfig({"scenes": SourceConfig("scenes:count=16,size=32,seed=0")}),
        teachers={name: TeacherConfig(family="dinov2", weights="none") for name in teachers},
        stages={
            "fixed": StageConfig(
                {name: StudentConfig([*teachers], arch="vit") for name in students}, [64]
            )
        },
        validate=ValidateConfig(tasks=list(tasks)),
    )


def measured(gap, config=None, **of_recipe):
    """(comparison, rows, untrained_of) in which each replica closes `gap(teachers, task, seed)`
    of the gap, None where it cannot do the task; `teachers` is a frozenset."""
    made = recipe(**of_recipe)
    comparison = expand(made, config or CompareConfig(seeds=[0, 1, 2]))
    rows, untrained_of = [], {}

    def add(model, role, seed, task, share):
        for metric, better in TASKS[task]:
            value = None
            if share is not None:
                value = UNTRAINED[better] + share * (TEACHER[better] - UNTRAINED[better])
            row = {"model": model, "role": role, "stage": "", "seed": seed, "task": task}
            row |= {"metric": metric, "better": better, "value": value, "image_size": 64}
            rows.append(row | ({"reason": f"{model} cannot"} if value is None else {}))

    seeds = sorted(
        {
            s
            for stage in comparison.recipe.stages.values()
            for student in stage.students.values()
            for s in student.seeds
        }
    )
    for task in comparison.recipe.validate.tasks:
        add("dinov2", "teacher", 0, task, 1.0)
        for seed in seeds:
            add("untrained", "untrained", seed, task, 0.0)
        for model, replica in comparison.replicas.items():
            untrained_of[model] = "untrained"
            for seed in seeds:
                share = gap(frozenset(replica.subset.teachers), task, seed)
                add(model, "student", seed, task, share)
    return comparison, rows, untrained_of
