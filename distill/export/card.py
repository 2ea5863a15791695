"""README.md of an exported student: what it is, where it comes from, how good it is, how to load
it, and what it is not good for."""

from __future__ import annotations

import re
from collections.abc import Sequence

import yaml

from distill.export.costs import multiply_adds
from distill.export.evidence import WEAK, Evidence, weaknesses
from distill.export.format_tables import formats_section, latencies
from distill.export.markdown import plain, table
from distill.export.origin import Origin
from distill.export.place import Place
from distill.export.secrets import without_secrets
from distill.export.snippets import snippets
from distill.lineage import warnings
from students import Spaces, Student


def model_card(
    student: Student,
    spaces: Spaces,
    origin: Origin,
    place: Place,
    evidence: Evidence | None = None,
) -> str:
    """README.md of a student's folder, with the front matter that the Hub reads.

    Without `evidence`, of a student that has only just been trained, there is neither table of
    scores nor recipe in it.
    """
    evidence = evidence or Evidence()
    parts = [
        _front_matter(origin),
        f"# {plain(origin.run)}: {plain(f'{origin.stage}/{origin.name}')}",
        _what(student, origin),
        _ancestry(origin),
        _training(origin, evidence),
        _scores(evidence),
        _cost(student, evidence),
        formats_section(evidence.formats),
        _loading(student, spaces, origin, place),
        _limits(student, evidence),
        _recipe(evidence),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(origin: Origin) -> str:
    content = {
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
        "license": origin.licence,
        "tags": ["image-feature-extraction", "distillation"],
        **({"author": origin.author} if origin.author else {}),
    }
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---"


def _what(student: Student, origin: Origin) -> str:
    sizes = ", ".join(map(str, origin.image_sizes))
    tokens = getattr(student.model, "num_prefix_tokens", 0)
    pooled = "its class token" if tokens and _pools_token(student) else "what it pools"
    return (
        f"A {student.arch} encoder of {student.parameter_count:,} parameters, distilled for "
        f"{origin.steps:,} steps at {sizes} pixels.\n\n"
        f"- summary: one vector of {student.summary_dim} an image, {pooled};\n"
        f"- dense: one vector of {student.dense_dim} per {student.stride} x {student.stride} "
        "pixels, after the final norm;\n"
        f"- pixels: RGB in [0, 1], minus {[round(x, 6) for x in student.mean]}, divided by "
        f"{[round(x, 6) for x in student.std]}."
    )


def _pools_token(student: Student) -> bool:
    return getattr(student.model, "global_pool", "") == "token"


def _ancestry(origin: Origin) -> str:
    lines = table(
        ("learnt from", "family", "weights", "licence"),
        (
            (name, about["family"], without_secrets(str(about["weights"])), _licence(about))
            for name, about in origin.teachers.items()
        ),
    )
    parts = ["## Teachers", lines]
    bound = warnings(origin.teachers)
    if bound:
        listed = "\n".join(f"- {plain(without_secrets(line))}" for line in bound)
        parts.append(f"Before this student is given away, read the licences:\n\n{listed}")
    return "\n\n".join(parts)


def _licence(about: dict[str, object]) -> str:
    return str(about["licence"] or "unknown")


def _training(origin: Origin, evidence: Evidence) -> str:
    sources = ", ".join(
        f"{plain(name)} (`{without_secrets(source)}`)" for name, source in origin.data.items()
    )
    parts = ["## Training", f"Images: {sources}." if sources else ""]
    if evidence.stages:
        parts.append(
            table(
                ("stage", "student", "learns from", "starts from", "steps", "batch", "pixels"),
                (
                    (
                        one.stage,
                        one.student,
                        ", ".join(one.learns_from),
                        one.starts_from or "random weights",
                        f"{one.steps:,}",
                        f"{one.batch_size:,}",
                        ", ".join(map(str, one.image_sizes)),
                    )
                    for one in evidence.stages
                ),
            )
        )
    return "\n\n".join(part for part in parts if part) if any(parts[1:]) else ""


def _scores(evidence: Evidence) -> str:
    if not evidence.scores:
        return ""
    parts = ["## Scores", f"On {', '.join(evidence.datasets)}."]
    for size in dict.fromkeys(score.image_size for score in evidence.scores):
        rows: list[Sequence[str]] = [
            (
                f"{score.task} {score.metric}".replace("_", " ")
                + (" ↓" if score.better == "lower" else ""),
                _number(score.value, score.better),
                _number(score.untrained, score.better),
                _number(score.best, score.better)
                + (f" ({score.best_teacher})" if score.best is not None else ""),
                _fraction(score.retention),
                _fraction(score.gap_closed),
            )
            for score in evidence.scores
            if score.image_size == size
        ]
        rows += [
            ("average over tasks", "", "", "", _fraction(one.retention), _fraction(one.gap_closed))
            for one in evidence.retained
            if (one.task, one.image_size) == ("average", size)
        ]
        columns = ("", "this", "untrained", "best teacher", "retention", "gap closed")
        parts.append(f"At {size} pixels:\n\n{table(columns, rows)}")
    parts.append(
        "Retention is this over the best teacher (the inverse where lower is better); gap closed "
        "is (this - untrained) / (best teacher - untrained): 0 is untrained, 1 the best teacher."
    )
    return "\n\n".join(parts)


def _number(value: float | None, better: str) -> str:
    return "-" if value is None else f"{value:.{1 if better == 'higher' else 3}f}"


def _fraction(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _cost(student: Student, evidence: Evidence) -> str:
    parts = [
        "## Cost",
        f"{student.parameter_count:,} parameters; {_in_words(multiply_adds(student))} "
        f"multiply-adds for an image of {student.size} pixels.",
    ]
    if evidence.bench is not None:
        parts.append(latencies(evidence.bench))
    return "\n\n".join(parts)


def _in_words(count: int) -> str:
    return f"{count / 1e9:,.3g} billion" if count >= 1e9 else f"{count / 1e6:.3g} million"


def _loading(student: Student, spaces: Spaces, origin: Origin, place: Place) -> str:
    where = "" if place.hub else ", run where this folder lies"
    parts = [f"## How to load it\n\nThe blocks follow one another{where}."]
    for one in snippets(student, spaces, origin, place):
        parts.append(f"### {plain(one.title)}\n\n{one.text}\n\n```python\n{one.code}\n```")
    reached = [f"`{' > '.join(path)}`" for _, path in spaces.routes()]
    if reached:
        parts.append(f"The spaces that can be reached, with the way to them: {', '.join(reached)}.")
    lost = spaces.left_out()
    for reason in dict.fromkeys(lost.values()):
        names = ", ".join(f"`{name}`" for name, why in lost.items() if why == reason)
        parts.append(f"Left out is the space of {names}: {reason}.")
    return "\n\n".join(parts)


def _limits(student: Student, evidence: Evidence) -> str:
    lines = weaknesses(evidence)
    if not evidence.retained:
        lines.append("Nothing of it has been measured: try it on your own task first.")
    elif lines:
        lines.insert(
            0,
            f"Tasks of which less than {WEAK:g} of the gap to the best teacher is closed, or of "
            "which it is not known; others were not measured:",
        )
        lines = [lines[0] + "".join(f"\n  - {plain(line)}" for line in lines[1:])]
    else:
        lines.append("What is not in the table of scores has not been measured.")
    if "img_size" in student.arguments and not student.arguments.get("dynamic_img_size"):
        lines.append(f"Images of another size than {student.size} pixels: it takes no other.")
    else:
        lines.append(
            f"Images whose sides are no multiple of {student.stride} pixels: resize them first."
        )
    lines.append("Text: it writes none, and reads none but through a teacher's text tower.")
    return "## What it is not good for\n\n" + "\n".join(f"- {line}" for line in lines)


def _recipe(evidence: Evidence) -> str:
    if not evidence.recipe:
        return ""
    longest = max((len(run) for run in re.findall(r"`+", evidence.recipe)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"## The recipe\n\n{fence}yaml\n{evidence.recipe.rstrip()}\n{fence}"
