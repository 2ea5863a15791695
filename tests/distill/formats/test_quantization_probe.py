"""What 8 bits cost in quality, by probes before and after."""

import pytest
import torch

import distill.formats.probe as probe_module
from distill.export.select import find_student
from distill.formats.probe import TASKS, QuantizationProbe, losses, mean_gap, mean_rows
from distill.probes.models import ProbedModel
from distill.probes.validate import validate
from students import Features, load_student

SPLIT = {"sizes": [32], "train": 64, "test": 64}


def row(task, metric, better, value):
    return {"task": task, "metric": metric, "better": better, "value": value}


def test_a_loss_is_above_zero_where_the_file_is_worse():
    before = [
        row("knn", "accuracy", "higher", 30.0),
        row("depth", "rmse", "lower", 0.10),
        row("segmentation", "miou", "higher", None),
    ]
    after = [
        row("depth", "rmse", "lower", 0.13),
        row("segmentation", "miou", "higher", 12.0),
        row("knn", "accuracy", "higher", 28.0),
    ]
    found = {one.task: one for one in losses(before, after)}
    assert found["knn"].loss == pytest.approx(2.0)
    assert found["depth"].loss == pytest.approx(0.03)
    assert found["segmentation"].loss is None


def test_means_over_worlds():
    worlds = [
        [row("knn", "accuracy", "higher", value), row("depth", "rmse", "lower", other)]
        for value, other in ((30.0, 0.1), (36.0, None))
    ]
    knn, depth = mean_rows(worlds)
    assert knn == row("knn", "accuracy", "higher", 33.0)
    assert depth["value"] is None
    assert worlds[0][0]["value"] == 30.0
    gaps = [{"float_value": 0.5, "value": 0.5 - loss, "loss": loss} for loss in (0.01, 0.04, -0.02)]
    # The deviations from 0.01 are 0, 0.03 and -0.03: sqrt(0.0018 / 2 / 3)
    error = (0.0018 / 2 / 3) ** 0.5
    expected = {"float_value": 0.5, "value": 0.49, "loss": 0.01, "error": error}
    assert mean_gap(gaps) == pytest.approx(expected)
    assert mean_gap(gaps[:1]) == {**gaps[0], "error": None}
    assert mean_gap([]) is None


@pytest.mark.slow
def test_the_student_loses_nothing_and_noise_all(student_folders, monkeypatch):
    monkeypatch.setattr(probe_module, "LEAST_SCENES", 65)  # two worlds of 64
    student = load_student(student_folders["vit"]).eval()
    probe = QuantizationProbe(find_student(student_folders["vit"]), student, scenes=64)

    def noise(pixels, size=None):
        features = student(pixels, size)
        generator = torch.Generator().manual_seed(len(pixels))
        return Features(
            torch.randn(features.summary.shape, generator=generator),
            torch.randn(features.dense.shape, generator=generator),
        )

    same, worse = probe(student, 32), probe(noise, 32)
    assert {one["task"] for one in same["losses"]} == set(TASKS)
    assert [one["loss"] for one in same["losses"]] == [0.0] * len(same["losses"])
    assert (same["image_size"], same["train"], same["test"], same["worlds"]) == (32, 64, 64, 2)
    # The mean of two worlds, each as `validate` has it.
    one = ProbedModel("x", "student", "", 0, student)
    worlds = [validate([one], {}, tasks=TASKS, seed=seed, **SPLIT) for seed in (0, 1)]
    scored = [{row["metric"]: row["value"] for row in rows} for rows in worlds]
    values = {one["metric"]: one["float_value"] for one in same["losses"]}
    assert values == pytest.approx({k: (v + scored[1][k]) / 2 for k, v in scored[0].items()})
    lost = {one["metric"]: one["loss"] for one in worse["losses"]}
    assert lost["miou"] > 0
    assert lost["rmse"] > 0
    assert same["gap_closed"] is None  # it is in no run


@pytest.mark.slow
def test_a_file_in_8_bits_has_its_losses_in_the_json(student_folders, tmp_path, monkeypatch):
    import distill.formats.write as write
    from distill.formats import FormatWriter, read_about

    monkeypatch.setattr(probe_module, "LEAST_SCENES", 64)
    monkeypatch.setattr(
        write, "QuantizationProbe", lambda *a, say: QuantizationProbe(*a, scenes=64, say=say)
    )
    writer = FormatWriter(find_student(student_folders["vit"]), target=tmp_path, probe=True)
    probes = read_about(writer.write("onnx", "int8-dynamic"))["probes"]
    assert probes["image_size"] == 32
    for one in probes["losses"]:
        sign = 1 if one["better"] == "higher" else -1
        assert one["loss"] == pytest.approx(sign * (one["float_value"] - one["value"]))
        # A tiny student in 8 bits is nearly as good.
        assert abs(one["loss"]) < (0.2 if one["metric"] == "rmse" else 10)
