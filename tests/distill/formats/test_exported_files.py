"""Every format's file, run by its own library without this project, against the student."""

import json
import os
import sys

import numpy as np
import pytest
import torch

from distill.formats import load_exported, read_about
from distill.formats.extras import silent
from distill.formats.verify import sizes_to_compare
from students import load_student

SHAPES = [(1, 32, 32), (3, 48, 24), (2, 16, 64)]
"""(batch, height, width): the student's own size, and others whose sides differ."""


def run_onnx(path, pixels):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [
        torch.from_numpy(a) for a in session.run(["summary", "dense"], {"pixels": pixels.numpy()})
    ]


def run_torch(path, pixels):
    import torchao.quantization  # noqa: F401

    return torch.export.load(path).module()(pixels)


def run_executorch(path, pixels):
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path)
    forward = program.load_method("forward")
    parts = [[o.clone() for o in forward.execute([image])] for image in pixels.split(1)]
    return [torch.cat(part) for part in zip(*parts, strict=True)]


RUN = {"onnx": run_onnx, "torch-export": run_torch, "executorch": run_executorch}
slow = pytest.mark.slow
FLOATS = [
    ("vit", "onnx"),
    pytest.param("plain", "onnx", marks=slow),
    ("convnext", "onnx"),
    ("vit", "torch-export"),
    pytest.param("plain", "torch-export", marks=slow),
    ("convnext", "torch-export"),
    pytest.param("vit", "executorch", marks=slow),
    pytest.param("plain", "executorch", marks=slow),
    pytest.param("convnext", "executorch", marks=slow),
]
INT8 = [
    ("vit", "onnx", "int8-dynamic"),
    ("vit", "onnx", "int8-static"),
    ("convnext", "onnx", "int8-dynamic"),
    ("convnext", "onnx", "int8-static"),
    ("vit", "torch-export", "int8-dynamic"),
    pytest.param("convnext", "torch-export", "int8-dynamic", marks=slow),
    pytest.param("vit", "executorch", "int8-dynamic", marks=slow),
    pytest.param("vit", "executorch", "int8-static", marks=slow),
    pytest.param("convnext", "executorch", "int8-dynamic", marks=slow),
    pytest.param("convnext", "executorch", "int8-static", marks=slow),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "form"), FLOATS)
def test_float_files_give_the_students_features(kind, form, exported, reference, pictures):
    path = exported(kind, form)
    # A .pte takes one image of one size.
    for count, height, width in SHAPES[:1] if form == "executorch" else SHAPES:
        pixels = pictures(count, height, width)
        summary, dense = RUN[form](path, pixels)
        ours = reference(kind, pixels)
        assert dense.shape == (count, height // 8, width // 8, 32)
        torch.testing.assert_close(summary, ours[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(dense, ours[1], atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "form", "quantize"), INT8)
def test_int8_files_are_near_the_student_and_not_the_same(
    kind, form, quantize, exported, reference, pictures
):
    pixels = pictures(2, 32, 32)
    given = RUN[form](exported(kind, form, quantize), pixels)
    for ours, theirs in zip(reference(kind, pixels), given, strict=True):
        assert torch.cosine_similarity(ours, theirs, dim=-1).min() > 0.95
        assert not torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("kind", ["vit", "convnext"])
def test_int8_weights_are_8_bits(kind, exported):
    import onnx

    for quantize in ("int8-dynamic", "int8-static"):
        model = onnx.load(exported(kind, "onnx", quantize))
        held = {onnx.TensorProto.INT8: 0, onnx.TensorProto.FLOAT: 0}
        for tensor in model.graph.initializer:
            if len(tensor.dims) >= 2 and tensor.data_type in held:
                held[tensor.data_type] += int(np.prod(tensor.dims))
        assert held[onnx.TensorProto.INT8] > held[onnx.TensorProto.FLOAT]


@pytest.mark.parametrize("kind", ["vit", "convnext"])
def test_int8_static_leaves_in_float_what_loses_most(kind, exported, student_folders):
    import onnx

    graph = onnx.load(exported(kind, "onnx", "int8-static")).graph
    made_by = {name: node for node in graph.node for name in node.output}
    quantised = 0
    for node in graph.node:
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            readers = [other for other in graph.node if node.output[0] in other.input]
            assert "QuantizeLinear" not in {reader.op_type for reader in readers}, "an output"
        if node.op_type == "Conv":
            quantised += made_by.get(node.input[1], node).op_type == "DequantizeLinear"
    student = load_student(student_folders[kind])
    convolutions = [m for m in student.modules() if isinstance(m, torch.nn.Conv2d)]
    dense = [m for m in convolutions if m.groups == 1 and m.in_channels != 3]
    assert quantised == len(dense)
    assert len(dense) < len(convolutions)


@pytest.mark.parametrize("kind", ["vit", "convnext"])
def test_what_executorch_quantises(kind, student_folders):
    from distill.formats.executorch_format import _in_8_bits
    from distill.formats.module import exported_module, trace

    student = load_student(student_folders[kind])
    module = exported_module(student, fused_attention=False)
    graph = trace(module, student, 32, dynamic=False).module().graph
    called = [n for n in graph.nodes if n.op == "call_function" and _in_8_bits(n)]
    layers = [
        m
        for m in module.modules()
        if isinstance(m, torch.nn.Linear) or (isinstance(m, torch.nn.Conv2d) and m.in_channels != 3)
    ]
    assert len(called) == len(layers) > 0
    others = [n for n in graph.nodes if n.op != "call_function"]
    assert all(map(_in_8_bits, others)), "weights go with their layers"


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("vit", "onnx"),
        ("convnext", "torch-export"),
        pytest.param("vit", "executorch", marks=slow),
    ],
)
def test_the_runner_is_an_encoder(kind, form, exported, student_folders, pictures):
    encoder, student = (
        load_exported(exported(kind, form), threads=1),
        load_student(student_folders[kind]),
    )
    pixels = pictures(3, 50, 40)  # resized by either
    with torch.no_grad():
        ours = student.eval()(pixels)
    theirs = encoder(pixels)
    torch.testing.assert_close(theirs.summary, ours.summary, atol=1e-4, rtol=0)
    torch.testing.assert_close(theirs.dense, ours.dense, atol=1e-4, rtol=0)
    assert (encoder.size, encoder.stride) == (32, 8)
    # What came first is not overwritten by what comes next.
    kept = theirs.summary.clone()
    encoder(1 - pixels)
    assert torch.equal(theirs.summary, kept)
    with pytest.raises(ValueError, match="no multiple"):
        encoder(pixels, 36)


def test_silence_is_over_when_the_block_is(capfd):
    def fail():
        with silent():
            os.write(2, b"by C++")
            print("by way of Python", file=sys.stderr)
            raise ValueError("said")

    with pytest.raises(ValueError, match="said"):
        fail()
    os.write(2, b"after")
    assert capfd.readouterr().err == "after"


@pytest.mark.parametrize(
    ("size", "others", "expected"),
    [
        (32, [32, 48], [(32, 32), (48, 48), (48, 40)]),
        (48, [32, 36], [(48, 48), (32, 32), (64, 56)]),  # 36 is no multiple of the stride
        (32, None, [(32, 32)]),
    ],
)
def test_sizes_of_a_comparison(size, others, expected, student_folders):
    student = load_student(student_folders["vit"])
    assert sizes_to_compare(student, size, others) == expected


@pytest.mark.slow
def test_executorch_prints_nothing_of_its_own(exported, capfd):
    path = exported("vit", "executorch")
    capfd.readouterr()
    for threads in (1, 2, 1):
        load_exported(path, threads)
    assert ".cpp:" not in capfd.readouterr().err


@pytest.mark.slow
def test_a_file_of_one_size_takes_no_other(exported, pictures):
    path = exported("vit", "executorch")
    assert path.name == "model_32.pte"
    with pytest.raises(ValueError, match="32 px only, not 40"):
        load_exported(path)(pictures(1, 40, 40), 40)


def test_the_json_says_what_the_file_is(exported, student_folders):
    path = exported("vit", "onnx")
    about = json.loads((path.parent / "model.json").read_text())
    assert about == read_about(path)
    assert about["bytes"] == path.stat().st_size
    assert about["parameters"] == load_student(student_folders["vit"]).parameter_count
    assert (about["format"], about["quantization"], about["stride"]) == ("onnx", None, 8)
    assert about["outputs"]["dense"]["shape"] == ["B", "H/8", "W/8", 32]
    assert about["versions"].keys() >= {"torch", "timm", "onnx", "onnxruntime"}
    sizes = [(row["height"], row["width"]) for row in about["verification"]]
    assert sizes == [(32, 32), (48, 40)]
    for row in about["verification"]:
        assert row["images"] == 4
        for kind in ("summary", "dense"):
            assert 0 < row[kind]["max_error"] < 1e-4
            assert row[kind]["min_cosine"] > 0.99999
    static = read_about(exported("vit", "onnx", "int8-static"))
    assert static["calibration"]["images"] == 64
    assert static["verification"][0]["dense"]["max_error"] > 1e-4
    assert not list(path.parent.glob(".*"))
