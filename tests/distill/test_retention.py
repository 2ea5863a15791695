"""Retention and gap closed by hand, what is undefined, seeds, and the table."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

from distill.comparison import comparison_table, render_terminal
from distill.retention import (
    AVERAGE,
    best_teachers,
    metric_gap_closed,
    metric_retention,
    retention,
)


def row(model, role, task, metric, value, better="higher", seed=0, size=64):
    more = {"reason": f"{model} cannot"} if value is None else {}
    return {
        "model": model, "role": role, "stage": "", "seed": seed, "task": task,
        "dataset": "scenes", "split": "test", "image_size": size, "samples": 8,
        "metric": metric, "value": value, "better": better, "protocol": "", "seconds": 0.1, **more,
    }  # fmt: skip


def models(task, metric, values, better="higher", **more):
    roles = {"U": "untrained", "A": "teacher", "B": "teacher", "P": "proxy", "s/vit": "student"}
    return [row(n, roles[n], task, metric, v, better, **more) for n, v in values.items()]


ROWS = [
    *models("knn", "accuracy", {"U": 10.0, "A": 50.0, "B": 30.0, "P": 45.0, "s/vit": 40.0}),
    *models("depth", "rmse", {"U": 1.2, "A": 0.9, "B": 0.4, "P": 0.5, "s/vit": 0.8}, "lower"),
    *models("retrieval", "r1", {"U": 2.0, "A": 20.0, "B": None, "P": 22.0, "s/vit": 11.0}),
    *models("retrieval", "r5", {"U": 10.0, "A": 40.0, "B": None, "P": 40.0, "s/vit": 25.0}),
]
UNTRAINED = {"s/vit": "U", "P": "U"}


def by_task(rows, model, untrained_of=UNTRAINED, **where):
    found = [r for r in retention(rows, untrained_of) if r.model == model]
    return {r.task: r for r in found if all(getattr(r, k) == v for k, v in where.items())}


def test_signs():
    assert metric_retention(40, 50, "higher") == pytest.approx(0.8)
    assert metric_retention(0.8, 0.4, "lower") == pytest.approx(0.5)
    assert metric_retention(0.0, 0.4, "lower") is None
    assert metric_gap_closed(40, 10, 50, "higher") == pytest.approx(0.75)
    assert metric_gap_closed(0.8, 1.2, 0.4, "lower") == pytest.approx(0.5)
    assert metric_gap_closed(0.3, 1.2, 0.4, "lower") == pytest.approx(1.125)  # beyond its teacher
    assert metric_gap_closed(5, 10, 50, "higher") == pytest.approx(-0.125)  # worse than untrained
    assert metric_gap_closed(1.4, 1.2, 0.4, "lower") == pytest.approx(-0.25)
    for better in ("higher", "lower"):  # nothing to close
        assert metric_gap_closed(3, 2, 2, better) is None
    assert metric_gap_closed(3, 2, 1, "higher") is None
    assert metric_gap_closed(3, 1, 2, "lower") is None
    with pytest.raises(ValueError, match="more"):
        metric_gap_closed(3, 1, 2, "more")
    with pytest.raises(ValueError, match="more"):
        metric_retention(3, 1, "more")


def test_best_teacher_is_a_teacher_of_the_same_size():
    best = best_teachers([*ROWS, *models("knn", "accuracy", {"A": 70.0, "P": 90.0}, size=128)])
    assert best["knn", "accuracy", 64] == 50
    assert best["knn", "accuracy", 128] == 70
    assert best["depth", "rmse", 64] == 0.4


def test_tasks_and_average_by_hand():
    vit = by_task(ROWS, "s/vit")
    assert vit["knn"].retention == pytest.approx(0.8)
    assert vit["knn"].gap_closed == pytest.approx(0.75)
    assert vit["depth"].retention == pytest.approx(0.5)
    assert vit["depth"].gap_closed == pytest.approx(0.5)
    # The mean over metrics of the ratios: (11/20 + 25/40) / 2 and (9/18 + 15/30) / 2.
    assert vit["retrieval"].retention == pytest.approx(0.5875)
    assert vit["retrieval"].gap_closed == pytest.approx(0.5)
    assert vit[AVERAGE].retention == pytest.approx((0.8 + 0.5 + 0.5875) / 3)
    assert vit[AVERAGE].gap_closed == pytest.approx((0.75 + 0.5 + 0.5) / 3)
    assert vit[AVERAGE].reasons == ()
    assert by_task(ROWS, "U")["knn"].retention == pytest.approx(0.2)
    assert by_task(ROWS, "A")[AVERAGE].gap_closed is None
    assert by_task(ROWS, "B")["retrieval"].retention is None


def test_a_gap_that_is_none_is_left_out_with_its_reason():
    rows = [*ROWS, *models("affinity", "auc", {"U": 80.0, "A": 80.0, "B": 75.0, "s/vit": 84.0})]
    vit = by_task(rows, "s/vit")
    assert vit["affinity"].gap_closed is None
    assert vit["affinity"].retention == pytest.approx(1.05)
    assert "no better than the untrained U's 80" in vit["affinity"].reasons[0]
    assert vit[AVERAGE].gap_closed == pytest.approx((0.75 + 0.5 + 0.5) / 3)
    assert vit[AVERAGE].reasons == (f"affinity: {vit['affinity'].reasons[0]}",)


def test_missing_values_have_reasons():
    rows = [
        *models("masks", "iou", {"U": 1.0, "A": None, "B": None, "s/vit": 5.0}),
        *models("text", "r1", {"U": None, "A": 30.0, "s/vit": 15.0}),
        *models("knn", "accuracy", {"U": 1.0, "A": 5.0, "s/vit": None}),
    ]
    vit = by_task(rows, "s/vit")
    assert vit["masks"].reasons == ("no teacher has iou",)
    assert vit["text"].reasons == ("U has no r1",)
    assert vit["text"].retention == pytest.approx(0.5)
    assert vit["knn"].reasons == ("s/vit cannot",)
    assert vit[AVERAGE].retention == pytest.approx(0.5)
    assert vit[AVERAGE].gap_closed is None


def test_each_seed_has_its_own_untrained():
    rows = [
        row("A", "teacher", "knn", "accuracy", 50.0),
        row("U", "untrained", "knn", "accuracy", 10.0, seed=0),
        row("U", "untrained", "knn", "accuracy", 20.0, seed=1),
        *(row("s/vit", "student", "knn", "accuracy", 40.0, seed=s) for s in (0, 1, 2)),
    ]
    gaps = [by_task(rows, "s/vit", seed=s)["knn"].gap_closed for s in (0, 1, 2)]
    # The third seed has no untrained one of its own: the mean, 15.
    assert gaps == pytest.approx([30 / 40, 20 / 30, 25 / 35])


def cells(table, model, size=64):
    found = next(r for r in table.rows if (r.model, r.image_size) == (model, size))
    keys = [(c.section, c.task, c.metric) for c in table.columns]
    return dict(zip(keys, found.cells, strict=True))


def test_the_table_is_plain_data_in_order():
    student_first = sorted(ROWS, key=lambda r: r["role"] != "student")
    table = comparison_table(student_first, UNTRAINED)
    assert [r.role for r in table.rows] == ["untrained", "teacher", "teacher", "proxy", "student"]
    vit = cells(table, "s/vit")
    assert vit["score", "retrieval", "r5"].mean == 25
    assert vit["retention", "knn", ""].mean == pytest.approx(0.8)
    assert vit["gap closed", AVERAGE, ""].mean == pytest.approx(1.75 / 3)
    assert vit["gap closed", AVERAGE, ""].std is None
    assert cells(table, "A")["gap closed", "knn", ""].mean is None
    missing = cells(table, "B")["score", "retrieval", "r1"]
    assert missing.mean is None
    assert missing.reason == "B cannot"
    assert json.loads(json.dumps(dataclasses.asdict(table)))["rows"][0]["model"] == "U"
    assert comparison_table([], {}).rows == ()


def test_seeds_become_mean_and_spread():
    rows = [row("A", "teacher", "knn", "accuracy", 50.0)]
    rows += [row("U", "untrained", "knn", "accuracy", 10.0)]
    values = {0: 20.0, 1: 30.0, 2: 40.0}
    rows += [row("s/vit", "student", "knn", "accuracy", v, seed=s) for s, v in values.items()]
    table = comparison_table(rows, {"s/vit": "U"})
    vit = cells(table, "s/vit")
    assert vit["score", "knn", "accuracy"].mean == pytest.approx(30)
    assert vit["score", "knn", "accuracy"].std == pytest.approx(10)
    assert vit["gap closed", "knn", ""].mean == pytest.approx(0.5)
    assert vit["gap closed", "knn", ""].std == pytest.approx(0.25)
    assert table.rows[-1].seeds == 3


def test_notes_name_what_an_average_leaves_out():
    rows = [*ROWS, *models("affinity", "auc", {"U": 80.0, "A": 80.0, "s/vit": 84.0, "P": 81.0})]
    notes = comparison_table(rows, UNTRAINED).notes
    assert len(notes) == 2
    assert any(
        note.startswith("s/vit at 64 px, left out of its average: affinity:") for note in notes
    )


def test_the_terminal_shows_models_sizes_and_brackets_as_they_are():
    rows = [*ROWS, *models("knn", "accuracy", {"U": 1.0, "A": 70.0, "s/vit": 60.0}, size=128)]
    rows.append(row("[bold]x", "student", "knn", "accuracy", 33.25))
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render_terminal(comparison_table(rows, UNTRAINED), console.width))
    text = console.export_text()
    for words in ("[bold]x", "untrained", "score, 64 px", "score, 128 px", "gap closed", "33.2"):
        assert words in text
    depth = next(line for line in text.splitlines() if "depth rmse" in line)
    assert depth.split() == ["depth", "rmse", "↓", "1.200", "0.900", "0.400", "0.500", "0.800", "-"]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_figure_is_cut_on_a_narrow_terminal(width):
    names = [f"multires/vit.dinov2-siglip-{n}" for n in range(7)]
    values = [round(10.1 + n, 1) for n in range(7)]
    rows = [
        row(name, "student", "knn", "accuracy", value)
        for name, value in zip(names, values, strict=True)
    ]
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render_terminal(comparison_table(rows, {}), width))
    text = console.export_text()
    assert "…" not in text
    assert all(f"{value:.1f}" in text for value in values)
    assert max(map(len, text.splitlines())) <= width
