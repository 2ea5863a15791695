"""What 8 bits cost in quality, by probes before and after."""

import pytest
import torch

from distill.export.select import find_student
from distill.formats.probe import TASKS, QuantizationProbe, losses
from students import Features, load_student


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


@pytest.mark.slow
def test_the_student_loses_nothing_and_noise_all(student_folders):
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
    assert (same["image_size"], same["train"], same["test"]) == (32, 64, 64)
    lost = {one["metric"]: one["loss"] for one in worse["losses"]}
    assert lost["miou"] > 0
    assert lost["rmse"] > 0
    assert same["gap_closed"] is None  # it is in no run


@pytest.mark.slow
def test_a_file_in_8_bits_has_its_losses_in_the_json(student_folders, tmp_path, monkeypatch):
    import distill.formats.write as write
    from distill.formats import FormatWriter, read_about

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
