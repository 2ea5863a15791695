"""Average gap closed by format: from the run's scores and what the probes of a file say it lost."""

import json

import pytest

from distill.formats.quality import RunScores, gap_closed, run_quality

TASKS = (
    # task, metric, better, untrained, best teacher, student
    ("knn", "accuracy", "higher", 10.0, 50.0, 30.0),
    ("depth", "rmse", "lower", 0.3, 0.1, 0.15),
)
OWN = ((30 - 10) / (50 - 10) + (0.3 - 0.15) / (0.3 - 0.1)) / 2


def row(model, role, task, metric, better, value, seed=0, size=64):
    return {
        "model": model,
        "role": role,
        "seed": seed,
        "image_size": size,
        "task": task,
        "metric": metric,
        "better": better,
        "value": value,
    }


def validation(seeded=False):
    rows = []
    for task, metric, better, untrained, teacher, student in TASKS:
        about = task, metric, better
        rows.append(row("untrained s/vit", "untrained", *about, untrained))
        rows.append(row("dino", "teacher", *about, teacher))
        rows.append(row("s/vit", "student", *about, student))
        rows.append(row("s/vit", "student", *about, untrained, size=96))  # nobody else was there
        if seeded:
            rows.append(row("s/vit", "student", *about, teacher, seed=1))
    return {"rows": rows, "untrained_of": {"s/vit": "untrained s/vit"}}


def probed(accuracy, rmse, size=64):
    """Rows of a probe, whose model has a name and a seed of its own."""
    return [
        row("student", "student", "knn", "accuracy", "higher", accuracy, 7, size),
        row("student", "student", "depth", "rmse", "lower", rmse, 7, size),
    ]


@pytest.fixture(params=[False, True])
def folder(request, tmp_path):
    """A student's folder in a validated run, with one seed or as the first of two."""
    (tmp_path / "validation.json").write_text(json.dumps(validation(request.param)))
    folder = tmp_path / "s" / ("vit.seed0" if request.param else "vit")
    folder.mkdir(parents=True)
    return folder


def test_what_is_lost_of_the_gap(folder):
    scores = RunScores.read(folder.parent.parent, folder)
    assert scores.sizes == [64, 96]
    found = gap_closed(scores, probed(30.0, 0.15), probed(26.0, 0.17))
    # (26 - 10) / 40 and (0.3 - 0.17) / 0.2
    after = (0.4 + 0.65) / 2
    assert found == pytest.approx({"float_value": OWN, "value": after, "loss": OWN - after})
    better = gap_closed(scores, probed(30.0, 0.15), probed(34.0, 0.15))
    assert better["loss"] == pytest.approx(-0.05)
    # What has no value after has none before: the average is over the same metrics.
    one = gap_closed(scores, probed(30.0, 0.15), probed(None, 0.15))
    assert one == pytest.approx({"float_value": 0.75, "value": 0.75, "loss": 0.0})
    assert gap_closed(scores, probed(None, None), probed(None, None)) is None
    assert gap_closed(scores, probed(30.0, 0.15, 96), probed(30.0, 0.15, 96)) is None
    assert gap_closed(None, probed(30.0, 0.15), probed(26.0, 0.17)) is None


def test_the_second_seed_is_scored_by_its_own_rows(tmp_path):
    held = validation(seeded=True)
    scores = RunScores(tmp_path / "s" / "vit.seed1", held["rows"], held["untrained_of"])
    assert {one["seed"] for one in scores.rows} == {1}
    assert scores.average(scores.rows) == pytest.approx(1.0)


def test_quality_of_each_file(folder):
    run = folder.parent.parent
    (folder / "onnx").mkdir()
    lost = {"gap_closed": {"float_value": 0.7, "value": 0.62, "loss": 0.08}}
    for stem, kind, probes in (
        ("model", None, None),
        ("model.int8-dynamic", "int8-dynamic", lost),
        ("model.int8-static", "int8-static", None),
        ("other.int8-static", "int8-static", {"gap_closed": None}),
    ):
        (folder / "onnx" / f"{stem}.onnx").write_bytes(b"")
        about = {"format": "onnx", "quantization": kind, "probes": probes}
        (folder / "onnx" / f"{stem}.json").write_text(json.dumps(about))
    (folder / "onnx" / "half.onnx").write_bytes(b"")
    # A file in 8 bits that was not probed is not known.
    expected = {"torch": OWN, "onnx": OWN, "onnx-int8-dynamic": OWN - 0.08}
    assert run_quality(run, folder, 64) == pytest.approx(expected)
    assert run_quality(run, folder, 96) == {}
    assert run_quality(run, folder, 128) == {}
    (run / "validation.json").write_text("{half")
    assert run_quality(run, folder, 64) == {}
    (run / "validation.json").unlink()
    assert run_quality(run, folder, 64) == {}
