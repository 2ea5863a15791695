import fake_run
import pytest

from distill.report.score_table import score_tables


def row(model, role, task, metric, value, better="higher", seed=0, size=64, **more):
    return {
        "model": model,
        "role": role,
        "stage": "",
        "seed": seed,
        "task": task,
        "dataset": "scenes",
        "split": "test",
        "image_size": size,
        "samples": 8,
        "metric": metric,
        "value": value,
        "better": better,
        "protocol": "",
        "seconds": 0.0,
        **more,
    }


@pytest.fixture
def validation():
    rows = []
    for model, role, recall, error in (
        ("raw", "untrained", 10.0, 0.5),
        ("t1", "teacher", 50.0, 0.3),
        ("t2", "teacher", 30.0, 0.1),
        ("s/a", "student", 40.0, 0.2),
    ):
        rows.append(row(model, role, "text_retrieval", "recall_at_1", recall))
        rows.append(row(model, role, "depth", "rmse", error, "lower"))
    rows.append(row("s/a", "student", "masks", "iou", None, reason="no decoder"))
    return {"untrained_of": {"s/a": "raw"}, "rows": rows}


def cells(table, name):
    (found,) = [each for each in table.rows if each.name == name]
    return found.cells


def test_scores_and_the_best_of_each_column(validation):
    scores, _ = score_tables(validation)
    assert [(c.title, c.below) for c in scores.columns] == [
        ("text retrieval", "recall at 1"),
        ("depth", "rmse ↓"),
        ("masks", "iou"),
    ]
    assert [each.name for each in scores.rows] == ["raw", "t1", "t2", "s/a"]
    assert [c.text for c in cells(scores, "s/a")] == ["40.0", "0.200", ""]
    assert cells(scores, "s/a")[2].reason == "no decoder"
    marked = [(each.name, [c.best for c in each.cells[:2]]) for each in scores.rows]
    assert marked == [
        ("raw", [False, False]),
        ("t1", [True, False]),
        ("t2", [False, True]),
        ("s/a", [False, False]),
    ]


def test_gap_closed_over_retention_with_the_average_first(validation):
    _, held = score_tables(validation)
    assert [c.title for c in held.columns] == ["average", "text retrieval", "depth", "masks"]
    average, text, depth, masks = cells(held, "s/a")
    assert (text.text, text.below) == ("0.75", "ret. 0.80")  # (40 - 10) / (50 - 10), 40 / 50
    assert (depth.text, depth.below) == ("0.75", "ret. 0.50")  # (.2 - .5) / (.1 - .5), .1 / .2
    assert (average.text, average.below, average.best) == ("0.75", "ret. 0.65", True)
    assert (masks.text, masks.reason) == ("", "no decoder")
    assert (cells(held, "t1")[1].text, cells(held, "t1")[1].below) == ("", "ret. 1.00")
    assert len(held.notes) == 1
    assert "masks" in held.notes[0]


def test_a_pair_of_tables_for_each_size_with_its_own_best(validation):
    validation["rows"] += [
        row("t2", "teacher", "depth", "rmse", 0.05, "lower", size=128),
        row("s/a", "student", "depth", "rmse", 0.01, "lower", size=128),
    ]
    tables = score_tables(validation)
    assert [each.title for each in tables] == [
        "Scores at 64 pixels",
        "Gap closed and retention at 64 pixels",
        "Scores at 128 pixels",
        "Gap closed and retention at 128 pixels",
    ]
    assert cells(tables[2], "s/a")[1].best
    assert cells(tables[0], "t2")[1].best
    assert all("128 px" not in note for note in tables[1].notes)


def test_seeds_are_a_mean_and_a_spread(validation):
    validation["rows"].append(row("s/a", "student", "text_retrieval", "recall_at_1", 44.0, seed=1))
    scores, _ = score_tables(validation)
    cell = cells(scores, "s/a")[0]
    assert (cell.text, cell.below) == ("42.0", "±2.8")
    assert "seeds" in scores.caption


def test_every_model_of_a_run_has_a_row_in_both(tmp_path):
    import json

    run = fake_run.write_run(tmp_path / "run")
    scores, held = score_tables(json.loads((run / "validation.json").read_text()))
    names = {"untrained vit", f"untrained {fake_run.IMAGE}", *fake_run.TEACHERS, "proxy/proxy"}
    names |= {f"{fake_run.STAGE}/{name}" for name in fake_run.STUDENTS}
    assert {each.name for each in scores.rows} == {each.name for each in held.rows} == names
