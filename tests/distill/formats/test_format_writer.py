"""What is written and what is not: names, sizes, missing libraries, files that went wrong."""

import argparse
import json
import sys

import pytest
import torch

from distill.export.select import Found, find_student
from distill.formats import FormatWriter, export_formats, exported_files, load_exported
from distill.formats.command import add_format_arguments, write_formats
from students import UserError


@pytest.fixture
def found(student_folders):
    return find_student(student_folders["vit"])


KINDS = ["--quantize", "int8-dynamic", "int8-static"]


def raises(words):
    return pytest.raises(UserError, match=words)


def test_unknown_names_are_guessed(found, tmp_path):
    with raises("unknown format 'onxx' .did you mean 'onnx'"):
        export_formats(found, ["onxx"], target=tmp_path)
    with raises("unknown quantization 'int8_dynamic' .did you mean 'int8-dynamic'"):
        export_formats(found, ["onnx"], ["int8_dynamic"], target=tmp_path)
    with raises("int8-static is for onnx and executorch, not for torch-export"):
        export_formats(found, ["torch-export"], ["int8-static"], target=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("size", "way"), [(36, "32 or 40"), (7, "8$"), (-8, "8$"), (0, "8$")])
def test_a_size_that_is_no_multiple(found, tmp_path, size, way):
    with raises(f"size {size} is no multiple of .* stride 8: take {way}"):
        export_formats(found, ["executorch"], sizes=[32, size], target=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_student(tmp_path):
    with raises("holds neither a run nor an exported student"):
        write_formats(tmp_path, ["onnx"], quiet=True)


@pytest.mark.parametrize(
    ("module", "form", "quantize", "extra"),
    [
        ("onnxruntime", "onnx", [], "onnx"),
        ("onnxscript", "onnx", [], "onnx"),
        ("executorch", "executorch", [], "executorch"),
        ("torchao", "torch-export", ["int8-dynamic"], "int8"),
    ],
)
def test_a_missing_library_is_one_line(found, tmp_path, monkeypatch, module, form, quantize, extra):
    for name in [n for n in sys.modules if n == module or n.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(UserError) as error:
        export_formats(found, [form], quantize, target=tmp_path)
    assert str(error.value).count("\n") == 0
    assert f"needs {module}, which is not installed" in str(error.value)
    assert f'pip install "distill-workbench[{extra}]"' in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_running_a_file_without_its_library(exported, monkeypatch):
    path = exported("vit", "onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with raises(r"pip install .distill-workbench\[onnx\]"):
        load_exported(path)


@pytest.mark.slow
def test_a_float_file_that_differs_is_not_there(found, tmp_path, monkeypatch):
    import distill.formats.torch_export as torch_export

    right = torch_export.exported_module

    def wrong(student):
        module = right(student)
        with torch.no_grad():
            module.model.norm.bias.add_(1e-3)
        return module

    writer = FormatWriter(found, target=tmp_path, probe=False)
    path = writer.write("torch-export")
    before = path.read_bytes()
    monkeypatch.setattr(torch_export, "exported_module", wrong)
    with raises("differ by 0.000.*not written"):
        writer.write("torch-export")
    # What was there stays; where nothing was, nothing is.
    assert path.read_bytes() == before
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.json", "model.pt2"]
    with raises("not written"):
        FormatWriter(found, target=tmp_path / "new", probe=False).write("torch-export")
    assert not (tmp_path / "new" / "torch-export").exists()


def test_static_quantization_needs_images(found, tmp_path):
    with raises("is in no run .* give --calibration FOLDER"):
        FormatWriter(found, target=tmp_path, probe=False).write("onnx", "int8-static")
    assert not (tmp_path / "onnx").exists()
    with raises("no images|no such folder|does not exist|not there"):
        FormatWriter(found, target=tmp_path, calibration=str(tmp_path / "none"), probe=False).write(
            "onnx", "int8-static"
        )


def test_a_proxy_too_large_for_one_file(found, tmp_path, monkeypatch):
    import distill.formats.onnx_format as onnx_format

    monkeypatch.setattr(onnx_format, "_LARGEST", 1000)
    with raises("one ONNX file holds at most 250"):
        FormatWriter(found, target=tmp_path, probe=False).write("onnx")
    assert not (tmp_path / "onnx").exists()


def test_damaged_and_foreign_files(exported, tmp_path):
    with raises("is no exported file: expected one of .onnx"):
        load_exported(tmp_path / "model.safetensors")
    with raises("there is no"):
        load_exported(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with raises("does not describe model.onnx"):
        load_exported(tmp_path / "model.onnx")
    path = exported("vit", "onnx")
    (tmp_path / "model.json").write_bytes((path.parent / "model.json").read_bytes())
    with raises("cannot be loaded by ONNX Runtime"):
        load_exported(tmp_path / "model.onnx")
    about = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.pt2").write_bytes(b"not a model")
    with raises("it is of the format onnx"):
        load_exported(tmp_path / "model.pt2")
    (tmp_path / "model.json").write_text(json.dumps({**about, "format": "torch-export"}))
    with raises("cannot be loaded by torch"):
        load_exported(tmp_path / "model.pt2")


@pytest.mark.slow
def test_the_command_writes_into_the_students_folder(student_folders, tmp_path, photos, capsys):
    import shutil

    folder = tmp_path / "student"
    shutil.copytree(
        student_folders["vit"], folder, ignore=shutil.ignore_patterns("onnx", "torch-*", "exec*")
    )
    parser = argparse.ArgumentParser()
    add_format_arguments(parser)
    given = parser.parse_args([f"--calibration={photos}", "--no-probe", "--format", "onnx", *KINDS])
    files = write_formats(
        folder,
        given.formats,
        given.quantize,
        sizes=given.size,
        calibration=given.calibration,
        probe=given.probe,
    )
    assert [file.name for file in files] == [
        "model.onnx",
        "model.int8-dynamic.onnx",
        "model.int8-static.onnx",
    ]
    assert sorted(exported_files(folder)) == sorted(files)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 6
    assert "largest error" in said[3]
    for wrong, words in (
        ({"formats": [], "quantize": ["int8-static"]}, "--quantize needs --format"),
        ({"formats": ["onnx"], "calibration": "x"}, "--calibration is for"),
        ({"formats": ["onnx"], "sizes": [64]}, "--size is for --format executorch"),
    ):
        with raises(words):
            write_formats(folder, quiet=True, **wrong)


def test_probes_are_run_by_default_in_a_validated_run_only(found):
    from distill.recipe.load import find_recipe, load_recipe

    recipe = load_recipe(find_recipe("quickstart"))
    assert FormatWriter(found)._probe is None
    assert FormatWriter(Found(found.folder, None, recipe))._probe is not None
    assert FormatWriter(Found(found.folder, None, recipe), probe=False)._probe is None
    recipe.validate = None
    assert FormatWriter(Found(found.folder, None, recipe))._probe is None
