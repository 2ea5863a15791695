"""The quickstart's students, barely trained, through every format and both ways to 8 bits: probed,
timed, on the run's page, and in the card of what is given away."""

import json

import pytest
import torch

import distill.formats.probe as probe
from distill.cli import main
from distill.formats import exported_files, load_exported, read_about
from distill.retention import retention
from students import load_student

SHORT = [
    "data.train.scenes.source=scenes:count=64,size=64",
    *(
        f"stages.{stage}.{key}={value}"
        for stage in ("proxy", "fixed", "multires")
        for key, value in {
            "train.steps": 2,
            "train.batch_size": 8,
            "train.warmup": 0,
            "calibration_batches": 2,
        }.items()
    ),
    "validate.train=64",
    "validate.test=64",
    "validate.tasks=[knn,segmentation,depth,text_retrieval,masks]",
]
FILES = {
    "onnx/model.onnx": None,
    "onnx/model.int8-dynamic.onnx": "int8-dynamic",
    "onnx/model.int8-static.onnx": "int8-static",
    "executorch/model_64.pte": None,
    "executorch/model_64.int8-dynamic.pte": "int8-dynamic",
    "executorch/model_64.int8-static.pte": "int8-static",
    "torch-export/model.pt2": None,
    "torch-export/model.int8-dynamic.pt2": "int8-dynamic",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "quickstart"
    assert main(["run", "quickstart", *SHORT, "--run-dir", str(folder)]) == 0
    return folder


@pytest.mark.slow
def test_through_all_formats(run, tmp_path, capsys, monkeypatch):
    name = "convnext"  # ViTs: test_exported_files.py
    monkeypatch.setattr(probe, "LEAST_SCENES", 64)  # the run's own world alone
    folder = run / "multires" / name
    for words in (
        ["onnx", "executorch", "--quantize", "int8-dynamic", "int8-static"],
        ["torch-export", "--quantize", "int8-dynamic"],
    ):
        assert main(["export", str(folder), "--format", *words]) == 0
    said = capsys.readouterr().out
    assert said.count("average gap closed") == 5
    written = {file.relative_to(folder).as_posix(): file for file in exported_files(folder)}
    assert written.keys() == FILES.keys()

    held = json.loads((run / "validation.json").read_text())
    (own,) = (
        one.gap_closed
        for one in retention(held["rows"], held["untrained_of"])
        if (one.model, one.task) == (f"multires/{name}", "average")
    )
    scored = {
        (row["task"], row["metric"]): row["value"]
        for row in held["rows"]
        if row["model"] == f"multires/{name}"
    }
    assert {task for task, _ in scored} == {
        "knn",
        "segmentation",
        "depth",
        "text_retrieval",
        "masks",
    }
    student = load_student(folder).eval()
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = student(pixels, 64)
    for path, kind in FILES.items():
        about, given = read_about(written[path]), load_exported(written[path])(pixels)
        for row in about["verification"]:
            for tokens in ("summary", "dense"):
                if kind is None:
                    assert row[tokens]["max_error"] < 1e-4 * max(row[tokens]["largest"], 1)
                # A student of a few steps is a rough one; a mix-up of features is near 0.
                assert row[tokens]["mean_cosine"] > (0.99999 if kind is None else 0.95), path
        for tokens in ("summary", "dense"):
            cosine = torch.cosine_similarity(given.get(tokens), expected.get(tokens), dim=-1)
            assert cosine.mean() > (0.99999 if kind is None else 0.95), path
        sizes = {row["height"] for row in about["verification"]}
        assert sizes == ({64} if path.startswith("executorch") else {64, 96, 80})
        if kind is None:
            continue
        # The probes of the student itself are the run's own, to the last digit that matters.
        probes = about["probes"]
        assert (probes["image_size"], probes["train"], probes["test"]) == (64, 64, 64)
        values = {(one["task"], one["metric"]): one["float_value"] for one in probes["losses"]}
        assert values == pytest.approx(scored, rel=1e-5)
        assert probes["gap_closed"]["float_value"] == pytest.approx(own, abs=1e-5)
        assert abs(probes["gap_closed"]["loss"]) < 0.5

    words = ["--seconds", "0", "--threads", "1", "--batch", "1", "--no-memory"]
    assert main(["bench", str(folder), *words]) == 0
    rows = json.loads((folder / "bench.json").read_text())["rows"]
    ours = [row for row in rows if row["model"] == f"multires/{name}"]
    # torch and its files at the stage's two sizes; int8-static of another size is not made for it.
    assert len(ours) == 2 * 9 - 1
    assert {row["model"] for row in rows} > {"dinov2", "siglip", "sam"}
    page = (run / "report.html").read_text()
    section = page.split('<section id="latency">')[1].split("</section>")[0]
    assert f"<title>{name}, executorch-int8-static</title>" in section

    assert main(["export", str(folder), "--to", str(tmp_path / "given")]) == 0
    card = (tmp_path / "given/README.md").read_text()
    for path in FILES:
        assert (tmp_path / "given" / path).read_bytes() == written[path].read_bytes()
        assert f"| {path} |" in card
    assert "| average gap closed |" in card.split("## Other formats")[1]
    assert "measured in turns on" in card
