"""Timing in turns, and the table of a student in its formats."""

import argparse
import json
import shutil
import time

import pytest
import torch

from distill.formats.bench import Contender, bench, peak_of
from distill.formats.bench_command import add_arguments, bench_command, tables
from distill.formats.labels import labels, parse_label
from distill.formats.timing import WARM_UP, interleaved, ratio
from students import UserError


class Clock:
    """Time that passes only when told."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def run(self, seconds, calls, name):
        def call():
            calls.append(name)
            self.now += seconds

        return call


def test_runs_take_turns():
    clock, calls = Clock(), []
    runs = {"a": clock.run(1.0, calls, "a"), "b": clock.run(4.0, calls, "b")}
    times = interleaved(runs, seconds=20.0, least=3, clock=clock)
    # Rounds of 5 s; the one that begins before 40 s is the last.
    assert {name: len(taken) for name, taken in times.items()} == {"a": 8, "b": 8}
    assert set(times["a"]) == {1.0}
    assert set(times["b"]) == {4.0}
    assert ratio(times, "b", "a") == 4.0
    assert calls[:6] == ["a", "b", "b", "a", "a", "b"]
    assert len(calls) == 2 * (8 + WARM_UP)
    assert len(interleaved(runs, seconds=0.0, least=3, clock=clock)["a"]) == 3
    assert len(interleaved(runs, seconds=1e9, most=7, clock=clock)["a"]) == 7


def test_labels_are_parsed():
    assert parse_label("onnx") == ("onnx", None)
    assert parse_label("torch-export-int8-dynamic") == ("torch-export", "int8-dynamic")
    assert "torch-export-int8-static" not in labels()
    with pytest.raises(UserError, match="did you mean 'onnx-int8-dynamic'"):
        parse_label("onnx-int8-dynamc")


def test_rows_for_what_each_can_do():
    seen = []

    def load(name):
        def at(threads):
            def encoder(pixels, size):
                seen.append((name, threads, tuple(pixels.shape), size))
                time.sleep(0.002)

            return encoder

        return at

    able = Contender("m", "onnx", load("onnx"), "onnx", "x")
    fixed = Contender("m", "executorch", load("pte"), "executorch", "y", (32,))
    content = bench(
        [able, fixed], sizes=[32, 40], batches=[1, 3], threads=[1, 2], seconds=0, memory=False
    )
    keys = [(r["format"], r["size"], r["batch"], r["threads"]) for r in content["rows"]]
    assert len(keys) == len(set(keys)) == 12
    assert ("executorch", 40, 1, 1) not in keys
    assert ("pte", 2, (3, 3, 32, 32), 32) in seen
    assert not [one for one in seen if one[0] == "pte" and one[3] == 40]
    for r in content["rows"]:
        assert r["images_per_s"] == pytest.approx(1000 * r["batch"] / r["median_ms"], rel=0.05)
    assert content["machine"]["cores"] >= 1


@pytest.mark.slow
def test_memory_in_a_process_of_its_own(student_folders, exported):
    from distill.formats.bench import spec_words
    from teachers import TeacherSpec

    filler = bytearray(300_000_000)  # this process's own memory is none of theirs
    found = {}
    for kind, file, size in (
        ("onnx", str(exported("vit", "onnx")), 32),
        ("torch-export", str(exported("vit", "torch-export")), 32),
        ("executorch", str(exported("vit", "executorch")), 32),
        ("student", str(student_folders["vit"]), 32),
        ("teacher", spec_words(TeacherSpec("dinov2", "builtin:dinov2-tiny")), 64),
    ):
        one = Contender("x", kind, lambda _: None, kind, file)
        found[kind] = peak_of(one, size, 1, 1)
        assert 20 < found[kind]["library_mb"] <= found[kind]["peak_mb"] < 2000
    # ONNX Runtime alone needs no torch.
    assert found["onnx"]["peak_mb"] < 0.8 * found["student"]["library_mb"]
    gone = Contender("x", "torch", lambda _: None, "student", "/nowhere")
    assert peak_of(gone, 32, 1, 1) == {"peak_mb": None, "library_mb": None}
    assert len(filler)


def arguments(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.slow
def test_the_command(student_folders, exported, tmp_path, capsys):
    exported("vit", "onnx")
    out = tmp_path / "bench.json"
    words = [str(student_folders["vit"]), "--formats", "torch", "onnx", "--sizes", "32", "48"]
    words += ["--threads", "1", "--seconds", "0", "--no-memory", "--out", str(out)]
    content = bench_command(arguments(*words))
    assert json.loads(out.read_text()) == content
    rows = content["rows"]
    assert {(r["model"], r["format"]) for r in rows} == {
        ("stage/vit", "torch"),
        ("stage/vit", "onnx"),
    }
    assert {(r["size"], r["batch"]) for r in rows} == {(32, 1), (32, 8), (48, 1), (48, 8)}
    assert all(r["median_ms"] > 0 and r["runs"] >= 5 for r in rows)
    assert "bench.json" in capsys.readouterr().out
    shown = list(tables(content))
    assert [len(one.rows) for one in shown] == [3, 3]  # the model's name, and each format
    assert "at 48 px" in shown[1].title
    assert len(shown[0].columns) == 1 + 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--formats", "onx"], "unknown format 'onx'"),
        (["--sizes", "36"], "36 is no multiple"),
        (["--batch", "0"], "--batch 0"),
        (["--threads", "-1"], "--threads -1"),
        (["--formats", "executorch-int8-static"], "write it with `distill export"),
    ],
)
def test_bad_input_of_the_command(words, said, student_folders, tmp_path):
    # Other tests write formats beside the student.
    names = ("config.json", "model.safetensors", "adapters.json", "adapters.safetensors")
    for name in names:
        shutil.copy(student_folders["convnext"] / name, tmp_path)
    with pytest.raises(UserError, match=said):
        bench_command(arguments(str(tmp_path), *words))
    with pytest.raises(UserError, match="neither a run nor"):
        bench_command(arguments(str(student_folders["vit"].parent.parent)))


def test_teachers_of_the_run_that_are_here(student_folders):
    from distill.export.select import Found
    from distill.formats.bench_command import _teachers
    from distill.recipe.load import find_recipe, load_recipe
    from distill.recipe.schema import TeacherConfig

    recipe = load_recipe(find_recipe("quickstart"))
    recipe.teachers = {
        "dinov2": recipe.teachers["dinov2"],
        "far": TeacherConfig(family="dinov2", weights="nobody/has-this"),
    }
    said = []
    found = Found(student_folders["vit"], None, recipe)
    (teacher,) = _teachers(found, [64, 72], said.append)
    assert (teacher.model, teacher.form, teacher.kind) == ("dinov2", "torch", "teacher")
    assert teacher.sizes == (64, 72)
    assert teacher.load(1)(torch.rand(1, 3, 64, 64), 64).summary.shape == (1, 96)
    assert said == ["far: left out (nobody/has-this is not on this machine)"]
    assert list(_teachers(Found(student_folders["vit"], None, None), [64], said.append)) == []
