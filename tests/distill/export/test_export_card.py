"""The card: every figure worked out by hand, nothing secret, nothing that breaks its Markdown."""

import hashlib
import json
import re

import pytest
import torch
import yaml
from tiny_students import ARCHITECTURES, SECRET, make_student, row, write_validation

from distill.export import model_card
from distill.export.contents import complete
from distill.export.costs import multiply_adds
from distill.export.origin import read_origin
from distill.export.place import Place
from distill.export.secrets import without_secrets
from distill.export.select import find_student
from students import Spaces, build_student, load_student


def card(run, place=None, student="fixed/vit"):
    found = find_student(run / student)
    return complete(found, place or Place("vit"))["README.md"].decode()


def table(text, heading):
    """The cells of the table below a line."""
    lines = text.split(heading, 1)[1].split("\n")
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows[0], rows[2:]


STUDENT, FRESH = "fixed/vit", "untrained vit"
ROWS = [
    # knn: 40 against 10 untrained, teachers 50 and 60: gap (40 - 10) / 50, retention 40 / 60.
    row(STUDENT, "student", 40.0),
    row(FRESH, "untrained", 10.0),
    row("dinov2", "teacher", 60.0),
    row("siglip", "teacher", 50.0),
    # depth: the lower the better: gap (0.3 - 0.2) / (0.3 - 0.05), retention 0.05 / 0.2.
    row(STUDENT, "student", 0.2, task="depth", metric="rmse", better="lower"),
    row(FRESH, "untrained", 0.3, task="depth", metric="rmse", better="lower"),
    row("dinov2", "teacher", 0.05, task="depth", metric="rmse", better="lower"),
    row("siglip", "teacher", 0.25, task="depth", metric="rmse", better="lower"),
    # masks: the teacher is no better than the untrained student.
    row(STUDENT, "student", 20.0, task="masks", metric="iou"),
    row(FRESH, "untrained", 30.0, task="masks", metric="iou"),
    row("dinov2", "teacher", 25.0, task="masks", metric="iou"),
    # texts: it has no way there.
    row(STUDENT, "student", None, task="texts", metric="r1", reason="reaches no text tower"),
    row("siglip", "teacher", 70.0, task="texts", metric="r1"),
    # Another seed, which this folder is not of.
    row(STUDENT, "student", 99.0, seed=7),
]


@pytest.fixture
def validated(run_folder):
    write_validation(run_folder, ROWS, {STUDENT: FRESH})
    return run_folder


def test_the_table_of_scores(validated):
    columns, rows = table(card(validated), "## Scores")
    assert columns == ["", "this", "untrained", "best teacher", "retention", "gap closed"]
    assert rows == [
        ["knn top1", "40.0", "10.0", "60.0 (dinov2)", "0.67", "0.60"],
        ["depth rmse ↓", "0.200", "0.300", "0.050 (dinov2)", "0.25", "0.40"],
        ["masks iou", "20.0", "30.0", "25.0 (dinov2)", "0.80", "-"],
        ["texts r1", "-", "-", "70.0 (siglip)", "-", "-"],
        # (0.6667 + 0.25 + 0.8) / 3 and (0.6 + 0.4) / 2
        ["average over tasks", "", "", "", "0.57", "0.50"],
    ]
    assert "On scenes (test)." in card(validated)


def test_what_it_is_not_good_for_follows_from_the_numbers(validated):
    limits = card(validated).split("## What it is not good for")[1].split("##")[0]
    tasks = re.findall(r"^  - (.*)$", limits, re.MULTILINE)
    assert len(tasks) == 3
    assert tasks[0] == "depth at 32 pixels: gap closed 0.40"
    assert tasks[1].startswith("masks at 32 pixels: gap closed is not known (iou of the best")
    assert tasks[2] == "texts at 32 pixels: gap closed is not known (reaches no text tower)"
    assert "knn" not in limits
    assert "no multiple of 8 pixels" in limits
    assert "Text: it writes none" in limits
    good = [{**one, "value": 55.0} if one["model"] == STUDENT else one for one in ROWS[:4]]
    write_validation(validated, good, {STUDENT: FRESH})
    limits = card(validated).split("## What it is not good for")[1]
    assert "gap closed" not in limits.split("##")[0]
    assert "What is not in the table of scores has not been measured." in limits


def test_without_a_validation(run_folder):
    text = card(run_folder)
    assert "## Scores" not in text
    assert "Nothing of it has been measured" in text
    (run_folder / "validation.json").write_text("{half")
    assert card(run_folder) == text


def test_front_matter_is_yaml(run_folder):
    front = yaml.safe_load(card(run_folder).split("---")[1])
    assert front["license"] == "apache-2.0"
    assert front["author"] == "[b]me: and | you[/b]"
    assert front["library_name"] == "timm"
    assert front["pipeline_tag"] == "image-feature-extraction"


def test_teachers_stages_and_recipe(run_folder):
    text = card(run_folder)
    _, teachers = table(text, "## Teachers")
    assert [line[0] for line in teachers] == ["dinov2", "siglip", "sam"]
    assert [line[3] for line in teachers] == ["apache-2.0", "apache-2.0", "unknown"]
    assert "- sam (" in text.split("read the licences:")[1]
    _, stages = table(text, "## Training")
    assert stages == [
        ["proxy", "proxy", "siglip, sam", "random weights", "6", "4", "32"],
        ["fixed", "vit", "proxy/proxy, dinov2", "random weights", "9", "4", "32, 64"],
    ]
    shown = yaml.safe_load(text.split("## The recipe\n\n```yaml\n")[1].rsplit("```", 1)[0])
    held = yaml.safe_load((run_folder / "recipe.yaml").read_text())
    assert SECRET in held["data"]["train"]["photos"].pop("source")
    assert shown["data"]["train"]["photos"].pop("source") == (
        "webdataset:https://h/x.tar?token=(removed)"
    )
    assert shown == held  # `tokens`, which is a key of teachers, among it
    assert shown["teachers"]["sam"]["tokens"] == ["dense"]
    assert SECRET not in text


def test_a_ladder_is_left_out_in_one_line(run_folder):
    lines = [line for line in card(run_folder).splitlines() if "unic" in line]
    reason = "a ladder reads every block of the encoder and serves training only"
    assert lines == [f"Left out is the space of `unic`: {reason}."]


def test_a_fence_in_the_recipe_does_not_end_it(run_folder):
    text = (run_folder / "recipe.yaml").read_text()
    (run_folder / "recipe.yaml").write_text(text + "# ```python\n# evil()\n# ```\n")
    assert "\n````yaml\n" in card(run_folder)


@pytest.mark.parametrize("size", [32, 64])
def test_multiply_adds_of_a_vit_by_hand(size):
    student = build_student(
        ARCHITECTURES["plain_vit"][0],
        size=size,
        overrides={"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8},
    )
    patches, width = (size // 8) ** 2, 32
    tokens = patches + 1
    block = tokens * width * (3 * width + width + 8 * width) + 2 * tokens * tokens * width
    assert multiply_adds(student, size) == patches * 3 * 64 * width + 2 * block


def test_costs_are_in_the_card(run_folder):
    student = find_student(run_folder).folder
    text = card(run_folder)
    assert "measured in turns" not in text
    assert re.search(r"parameters; [\d.]+ million multiply-adds for an image of 32 pixels", text)
    one = {"model": "fixed/vit", "format": "onnx", "size": 32, "batch": 1, "threads": 1}
    rows = [
        {**one, "median_ms": 1.23456, "peak_mb": 87.3, "library_mb": 60.0},
        {**one, "batch": 8, "threads": 2, "median_ms": 9.0},
        {**one, "model": "a|b", "format": "torch", "median_ms": 1234.56},
    ]
    machine = {"processor": "Z80", "cores": 2, "versions": {"torch": "2.9"}}
    (student / "bench.json").write_text(json.dumps({"machine": machine, "rows": rows}))
    columns, lines = table(card(run_folder), "measured in turns on Z80, 2 cores, torch 2.9:")
    assert columns == [
        "model",
        "format",
        "32 px, batch 1, 1 thread",
        "32 px, batch 8, 2 threads",
        "peak MB",
        "of it libraries",
    ]
    assert lines == [
        ["fixed/vit", "onnx", "1.235", "9", "87", "60"],
        ["a\\|b", "torch", "1235", "-", "-", "-"],
    ]
    (student / "bench.json").write_text("[{")
    assert "measured in turns" not in card(run_folder)


def test_a_name_is_no_markup(tmp_path, run_folder):
    folder = run_folder / "fixed/convnext"
    make_student(folder, "convnext")
    about = json.loads((folder / "adapters.json").read_text())
    about["teachers"]["a|b<script>"] = {"family": "x", "weights": "w\nv", "licence": "mit"}
    (folder / "adapters.json").write_text(json.dumps(about))
    text = card(run_folder, student="fixed/convnext")
    assert "<script>" not in text
    assert "| a\\|b&lt;script> | x | w v | mit |" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tokens: [dense]", None),
        ("token: null", None),
        ("num_prefix_tokens: 5", None),
        ("lr: 0.001", None),
        ("https://h/x.tar?a=1&b=2", None),
        ("key: value", None),
        ("image/dense_key", None),
        ("token: hf_abcdef", "token: (removed)"),
        ("HF_TOKEN=abc123 x", "HF_TOKEN=(removed) x"),
        ("--password hunter2 x", "--password (removed) x"),
        ('api_key: "q w" # x', "api_key: (removed) # x"),
        ("{secret: a, b: 1}", "{secret: (removed), b: 1}"),
        ("s3://me:pass@h/x", "s3://(removed)@h/x"),
        ("https://h/x?X-Amz-Signature=ab%2F1&b=1", "https://h/x?X-Amz-Signature=(removed)&b=1"),
        ("https://h/x?se=1&sig=ab", "https://h/x?se=1&sig=(removed)"),
        (
            "pipe:curl -H 'Authorization: Bearer a.b' u",
            "pipe:curl -H 'Authorization: Bearer (removed)' u",
        ),
        ("echo hf_abcdefghijklmnopq", "echo (removed)"),
        ("AKIAABCDEFGHIJKLMNOP", "(removed)"),
    ],
)
def test_what_is_secret(text, expected):
    assert without_secrets(text) == (text if expected is None else expected)
    assert without_secrets(without_secrets(text)) == without_secrets(text)


def test_the_home_folder_has_no_name(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/someone")
    assert without_secrets("folder:/home/someone/photos") == "folder:~/photos"
    assert without_secrets("folder:/home/someones/photos") == "folder:/home/someones/photos"


def test_a_card_leaves_the_student_alone(run_folder):
    """It is written of one that trains: nothing runs through it, no draw is taken."""
    found = find_student(run_folder)
    student = load_student(found.folder).train()
    student.model.register_forward_pre_hook(lambda *_: pytest.fail("was run"))
    student.model.patch_embed.register_forward_pre_hook(lambda *_: pytest.fail("was run"))
    spaces, origin = Spaces.load(found.folder), read_origin(found.folder, found.recipe)
    before = torch.random.get_rng_state()
    assert "## Cost" in model_card(student, spaces, origin, Place("vit"))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert student.model.training


def written(student, name, form, kind=None, probes=None):
    """A file of another format, as the writer of formats leaves one."""
    weights = hashlib.sha256((student / "model.safetensors").read_bytes()).hexdigest()
    near = {"max_error": 2e-6, "largest": 3.0, "mean_cosine": 1.0, "min_cosine": 0.9999871}
    off = {"max_error": None, "largest": None, "mean_cosine": None, "min_cosine": None}
    row = {"height": 32, "width": 48, "images": 4, "summary": near, "dense": off}
    about = {"format": form, "quantization": kind, "bytes": 1234, "weights": weights}
    file = student / form / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(b"in another format")
    about |= {"verification": [row], "probes": probes}
    file.with_suffix(".json").write_text(json.dumps(about))
    return file


def test_other_formats_are_in_the_card(run_folder):
    student = find_student(run_folder).folder
    assert "## Other formats" not in card(run_folder)

    def loss(task, metric, better, first, second, lost):
        found = {"task": task, "metric": metric, "better": better}
        return {**found, "float_value": first, "value": second, "loss": lost}

    def probes(*losses, closed=None):
        return {
            "image_size": 32,
            "train": 64,
            "test": 96,
            "seed": 0,
            "worlds": 3,
            "losses": losses,
            "gap_closed": closed,
        }

    closed = {"float_value": 0.5, "value": 0.4875, "loss": 0.0125, "error": 0.0042}
    written(student, "model.onnx", "onnx")
    written(
        student,
        "model.int8-dynamic.onnx",
        "onnx",
        "int8-dynamic",
        probes(
            loss("segmentation", "miou", "higher", 30.0, 28.5, 1.5),
            loss("depth", "rmse", "lower", 0.1, 0.102, 0.002),
            loss("masks", "iou", "higher", None, None, None),
            closed=closed,
        ),
    )
    worse = probes(loss("segmentation", "miou", "higher", 30.0, 31.0, -1.0))
    written(student, "model_32.int8-static.pte", "executorch", "int8-static", worse)
    written(student, "model.int8-dynamic.pt2", "torch-export", "int8-dynamic")
    text = card(run_folder)
    columns, rows = table(text, "## Other formats")
    assert columns == [
        "file",
        "bytes",
        "pixels",
        "summary error",
        "summary cosine",
        "dense error",
        "dense cosine",
    ]
    assert rows[0] == [
        "onnx/model.int8-dynamic.onnx",
        "1.23 kB",
        "32 x 48",
        "2.0e-06",
        "0.999987",
        "-",
        "-",
    ]
    assert [line[0] for line in rows[1:]] == [
        "onnx/model.onnx",
        "executorch/model_32.int8-static.pte",
        "torch-export/model.int8-dynamic.pt2",
    ]
    columns, rows = table(text, "In 8 bits, probed on 96 scenes of 32 pixels")
    assert columns == ["", "float32", *(name for name in columns[2:])]
    assert columns[2:] == ["onnx/model.int8-dynamic.onnx", "executorch/model_32.int8-static.pte"]
    assert rows == [
        ["segmentation miou", "30.0", "28.5 (-1.5)", "31.0 (+1.0)"],
        ["depth rmse ↓", "0.100", "0.102 (+0.002)", "-"],
        ["average gap closed", "0.500", "0.487 (-0.013 ± 0.004)", "-"],
    ]
    assert "not known: torch-export/model.int8-dynamic.pt2." in text


def test_only_files_of_these_weights_leave(run_folder, capsys):
    import argparse

    from distill.export.command import add_arguments, export_command

    student = find_student(run_folder).folder
    kept, stale, bare = (
        written(student, name, "onnx")
        for name in ("model.onnx", "model.int8-dynamic.onnx", "model.int8-static.onnx")
    )
    about = json.loads(stale.with_suffix(".json").read_text())
    stale.with_suffix(".json").write_text(json.dumps({**about, "weights": "0" * 64}))
    bare.with_suffix(".json").unlink()
    target = run_folder.parent / "given"
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    export_command(parser.parse_args([str(run_folder), "--to", str(target)]))
    assert sorted(path.name for path in (target / "onnx").iterdir()) == ["model.json", "model.onnx"]
    assert (target / "onnx/model.onnx").read_bytes() == kept.read_bytes()
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")]
    assert said == [
        "left out: onnx/model.int8-dynamic.onnx (it was made of other weights); export it again",
        "left out: onnx/model.int8-static.onnx (model.int8-static.json does not describe it); "
        "export it again",
    ]
    text = (target / "README.md").read_text()
    assert "onnx/model.onnx" in text
    assert "int8" not in text.split("## The recipe")[0]
    # What was given away can be given away again.
    export_command(parser.parse_args([str(target), "--to", str(run_folder.parent / "again")]))
    assert (run_folder.parent / "again/onnx/model.onnx").is_file()
