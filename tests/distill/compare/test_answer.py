"""The answer on planted scores: figures, averages, contributions, the front, sentences."""

import dataclasses
import io
import itertools
import json
from statistics import mean, stdev

import pytest
from planted import measured
from rich.console import Console

from distill.compare.answer import compare, plain, write_answer
from distill.compare.figures import figure
from distill.compare.frontier import Costs
from distill.compare.scores import EVERY_TASK
from distill.compare.terminal import render_answer
from distill.recipe.schema import CompareConfig

GOOD_AT = {"dinov2": "depth", "siglip": "knn", "sam": "masks"}
COSTS = Costs("GFLOP an image", {"dinov2": 1.0, "siglip": 2.0, "sam": 5.0})
NOISE = {0: -0.02, 1: 0.0, 2: 0.02}


def gap(teachers, task, seed):
    """Each teacher is good at its task; masks cannot be done without sam."""
    if task == "masks" and "sam" not in teachers:
        return None
    able = any(GOOD_AT[teacher] == task for teacher in teachers)
    return (0.8 if able else 0.1) + NOISE[seed]


def answer(config=None, costs=COSTS, gap=gap, **of_recipe):
    comparison, rows, untrained_of = measured(gap, config, **of_recipe)
    return compare(comparison, rows, untrained_of, costs)


def cells(one):
    return {(cell.subset, cell.task): cell for cell in one.cells}


def test_cells_are_mean_and_sample_deviation():
    (one,) = answer().answers
    assert (one.student, one.image_size, one.seeds) == ("fixed/vit", 64, (0, 1, 2))
    cell = cells(one)["dinov2-siglip", "knn"]
    planted = [0.78, 0.80, 0.82]
    assert cell.gap_closed.mean == pytest.approx(mean(planted))
    assert cell.gap_closed.std == pytest.approx(stdev(planted))
    assert cell.score.mean == pytest.approx(20 + 60 * 0.8)
    assert cell.score.std == pytest.approx(60 * 0.02)
    assert cell.retention.mean == pytest.approx((20 + 60 * 0.8) / 80)
    depth = cells(one)["dinov2", "depth"]
    assert depth.score.mean == pytest.approx(1.0 - 0.6 * 0.8)
    metrics = {(m.subset, m.task, m.metric): m for m in one.metrics}
    assert metrics["dinov2", "depth", "rmse"].better == "lower"
    assert metrics["sam", "image_retrieval", "map"].value.mean == pytest.approx(20 + 60 * 0.1)


def test_the_average_is_over_what_every_subset_can_do():
    (one,) = answer().answers
    assert one.shared == ("knn", "depth", "image_retrieval")
    found = cells(one)
    # siglip: 0.8 at knn, 0.1 at depth and retrieval; what it cannot do is not zero.
    assert found["siglip", "average"].gap_closed.mean == pytest.approx(1.0 / 3)
    assert found["siglip", "masks"].gap_closed.mean is None
    assert "cannot" in found["siglip", "masks"].gap_closed.reason
    every = {s: found[s, EVERY_TASK].gap_closed for s in one.subsets}
    assert {s for s, cell in every.items() if cell.mean is not None} == {
        s for s in one.subsets if "sam" in s
    }
    assert every["dinov2-siglip-sam"].mean == pytest.approx((0.8 + 0.8 + 0.1 + 0.8) / 4)
    assert every["siglip"].reason == "cannot do masks"
    assert any("leaves out masks" in note for note in one.notes)


def test_only_the_tasks_asked_for_count():
    (one,) = answer(CompareConfig(tasks=["knn"])).answers
    assert one.tasks == ("knn",)
    assert cells(one)["siglip", "average"].gap_closed.mean == pytest.approx(0.8)


def test_contributions_on_the_average_are_those_of_its_tasks():
    """The Shapley value is linear in the game."""
    (one,) = answer().answers
    for teacher in GOOD_AT:
        of_tasks = [one.contributions[task].values[teacher].mean for task in one.shared]
        assert one.contributions["average"].values[teacher].mean == pytest.approx(mean(of_tasks))


def test_a_specialist_is_what_adds_to_its_task():
    (one,) = answer().answers
    # Alone of three, siglip lifts knn from 0.1 to 0.8; the first 0.1 is shared by all alike.
    expected = {"dinov2": 0.1 / 3, "siglip": 0.7 + 0.1 / 3, "sam": 0.1 / 3}
    got = one.contributions["knn"]
    assert {t: e.mean for t, e in got.values.items()} == pytest.approx(expected)
    masks = one.contributions["masks"]
    assert masks.needed == ("sam",)
    assert masks.together.mean == pytest.approx(0.8)
    assert masks.values["siglip"].mean == pytest.approx(0.0)


def test_few_subsets_give_leave_one_out():
    (one,) = answer(CompareConfig(subsets="leave_one_out")).answers
    found = one.contributions["knn"]
    assert found.method == "leave_one_out"
    assert {t: e.mean for t, e in found.values.items()} == pytest.approx(
        {"siglip": 0.7, "dinov2": 0.0, "sam": 0.0}
    )


def test_a_teacher_in_every_subset_is_no_player():
    (one,) = answer(CompareConfig(teachers=["siglip", "sam"])).answers
    assert one.always == ("dinov2",)
    assert one.contributions["knn"].method == "leave_one_out"
    costs = {point.subset: point.cost for point in one.front}
    assert costs == {"siglip": 3.0, "sam": 6.0, "siglip-sam": 8.0}
    assert "In every subset: dinov2." in one.notes


def test_the_front_is_of_average_over_cost():
    def uneven(teachers, task, seed):
        return {"siglip": 0.7, "dinov2": 0.5, "sam": 0.1}[max(teachers)] + NOISE[seed]

    (one,) = answer(gap=uneven, tasks=("knn",)).answers
    points = {p.subset: (p.cost, round(p.quality, 9), p.on_front) for p in one.front}
    assert points == {
        "dinov2": (1.0, 0.5, True),
        "siglip": (2.0, 0.7, True),
        "sam": (5.0, 0.1, False),
        "dinov2-siglip": (3.0, 0.7, False),
        "dinov2-sam": (6.0, 0.1, False),
        "siglip-sam": (7.0, 0.7, False),
        "dinov2-siglip-sam": (8.0, 0.7, False),
    }
    assert [p.std for p in one.front] == pytest.approx([0.02] * 7)


def test_sentences():
    (one,) = answer().answers
    said = {r.question: r for r in one.recommendations}
    assert said["best average"].sentence == (
        "Best on average over 3 tasks that every subset can do: dinov2 + siglip, which closes "
        "0.57 ±0.02 of the gap; within its spread: dinov2 + siglip + sam."
    )
    assert said["best at every task"].sentence == (
        "Best among those that can do all 4 tasks: dinov2 + siglip + sam, which closes 0.62 ±0.02 "
        "of the gap."
    )
    assert said["best at image_retrieval"].subset in ("dinov2", "siglip", "sam")
    assert said["cheapest"].sentence == (
        "Cheapest within one spread of the best: dinov2 + siglip, 3 GFLOP an image, which is the "
        "best itself."
    )


def test_the_cheapest_is_within_one_spread():
    def close(teachers, task, seed):
        # Two are 0.025 below the best, more than its deviation of 0.02; the others 0.015.
        below = {3: 0.0, 2: 0.025, 1: 0.015}[len(teachers)]
        return 0.515 + NOISE[seed] - below

    (one,) = answer(gap=close, tasks=("knn",)).answers
    said = {r.question: r for r in one.recommendations}
    assert said["best average"].subset == "dinov2-siglip-sam"
    assert said["best average"].sentence.endswith("; within its spread: dinov2, siglip, sam.")
    assert said["cheapest"].sentence == (
        "Cheapest within one spread of the best: dinov2, 1 GFLOP an image instead of 8, closes "
        "0.50 ±0.02 of the gap."
    )


def test_only_the_nearest_are_named():
    def level(teachers, task, seed):
        return 0.5 + NOISE[seed] + 0.001 * len(teachers)

    (one,) = answer(gap=level, tasks=("knn",)).answers
    (said,) = (r for r in one.recommendations if r.question == "best average")
    assert said.sentence.endswith(
        "; within its spread: dinov2 + siglip, dinov2 + sam, siglip + sam and 3 more."
    )


def test_one_seed_says_that_it_knows_no_spread():
    (one,) = answer(CompareConfig(seeds=[0])).answers
    said = {r.question: r.sentence for r in one.recommendations}
    assert "cheapest" not in said
    assert said["best at depth"].endswith("of one seed, so that a small lead says nothing.")
    assert any("one seed" in note for note in one.notes)


def test_without_costs_nothing_is_said_of_them():
    whole = answer(costs=None)
    assert whole.answers[0].front == ()
    assert "cheapest" not in {r.question for r in whole.answers[0].recommendations}


def test_a_cost_that_is_missing_is_refused():
    with pytest.raises(ValueError, match="costs of siglip, sam are missing"):
        answer(costs=Costs("ms", {"dinov2": 1.0}))


def test_a_subset_that_was_stopped_is_left_out_and_named():
    comparison, rows, untrained_of = measured(gap)
    lost = [r for r in rows if not r["model"].endswith(".siglip-sam")]
    (one,) = compare(comparison, lost, untrained_of).answers
    assert "siglip-sam" not in one.subsets
    assert "Not scored, so not compared: siglip + sam." in one.notes
    assert one.contributions["knn"].method == "leave_one_out"


def test_a_seed_that_was_stopped_is_left_out_of_its_games():
    comparison, rows, untrained_of = measured(gap)
    lost = [r for r in rows if (r["model"], r["seed"]) != ("fixed/vit.sam", 1)]
    (one,) = compare(comparison, lost, untrained_of).answers
    assert cells(one)["sam", "knn"].gap_closed.std == pytest.approx(stdev([0.08, 0.12]))
    assert one.shared == ("knn", "depth", "image_retrieval")
    assert one.contributions["knn"].values["siglip"].seeds == 2


def test_students_and_sizes_have_answers_of_their_own():
    comparison, rows, untrained_of = measured(gap, students=("vit", "convnext"))
    larger = [row | {"image_size": 96} for row in rows]
    made = compare(comparison, rows + larger, untrained_of)
    assert {(one.student, one.image_size) for one in made.answers} == {
        *itertools.product(("fixed/vit", "fixed/convnext"), (64, 96))
    }


def test_the_file_is_the_answer(tmp_path):
    made = answer()
    write_answer(tmp_path / "compare.json", made)
    read = json.loads((tmp_path / "compare.json").read_text())
    assert read == plain(made)
    assert [*tmp_path.iterdir()] == [tmp_path / "compare.json"]
    assert read["answers"][0]["contributions"]["masks"]["needed"] == ["sam"]
    fields = {field.name for field in dataclasses.fields(type(made.answers[0]))}
    assert set(read["answers"][0]) == fields


@pytest.mark.parametrize(
    ("mean", "std", "decimals", "shown"),
    [
        (-0.004, 0.031, 2, "0.00 ±0.03"),
        (-0.006, None, 2, "\N{MINUS SIGN}0.01"),
        (61.25, 1.06, 1, "61.2 ±1.1"),
    ],
)
def test_figures(mean, std, decimals, shown):
    assert figure(mean, std, decimals) == shown


def printed(made, width):
    console = Console(width=width, record=True, force_terminal=True, file=io.StringIO())
    console.print(render_answer(made))
    return console.export_text(styles=True)


def test_the_terminal_has_the_best_in_bold():
    text = printed(answer(), 140)
    assert "Adding" not in text
    assert "within its spread" in text
    for bold in ("0.57 ±0.02", "68.0 ±1.2", "0.520 ±0.012"):
        assert f"\x1b[1m{bold}" in text, bold
    assert "\x1b[1m0.33 ±0.02" not in text
    assert "0.80 ±0.02*" in text


def test_names_are_no_markup():
    made = answer()
    odd = {name: ("[red]x[/red]", *teachers) for name, teachers in made.subsets.items()}
    assert "[red]x[/red]" in printed(dataclasses.replace(made, subsets=odd), 200)
