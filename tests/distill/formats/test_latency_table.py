"""bench.json as the tables of the terminal, the card and the report have it."""

import json

from distill.formats.latency_table import Column, columns, lines, machine_words, read_bench


def row(model, form, ms, size=64, batch=1, threads=1, **other):
    found = {"model": model, "format": form, "size": size, "batch": batch, "threads": threads}
    return {**found, "median_ms": ms, **other}


ROWS = [
    row("s/vit", "onnx", 2.0, size=96, batch=2, threads=4, peak_mb=None, library_mb=None),
    row("s/vit", "torch", 4.0, peak_mb=300.0, library_mb=200.0),
    row("dino", "torch", 9.0),
    row("s/vit", "torch", 8.0, size=96, batch=8, peak_mb=320.0, library_mb=210.0),
]


def test_a_line_for_each_and_a_column_for_each_way():
    bench = {"rows": ROWS, "machine": {}}
    order = [Column(64, 1, 1), Column(96, 8, 1), Column(96, 2, 4)]
    assert columns(bench) == order
    assert [one.words for one in order[1:]] == ["batch 8, 1 thread", "batch 2, 4 threads"]
    found = [(one.model, one.form, one.ms) for one in lines(bench)]
    assert found == [
        ("s/vit", "onnx", (None, None, 2.0)),
        ("s/vit", "torch", (4.0, 8.0, None)),
        ("dino", "torch", (9.0, None, None)),
    ]
    # The largest, and the libraries of the same process.
    memory = [(one.peak_mb, one.library_mb) for one in lines(bench)]
    assert memory == [(None, None), (320.0, 210.0), (None, None)]


def test_the_machine_in_words():
    machine = {
        "processor": "Z80",
        "cores": 2,
        "platform": "CP/M",
        "python": "3.11.2",
        "versions": {"torch": "2.9", "onnxruntime": "1.23"},
    }
    assert (
        machine_words(machine) == "Z80, 2 cores, CP/M, python 3.11.2, torch 2.9, onnxruntime 1.23"
    )
    assert machine_words({"processor": "Z80"}) == "Z80"


def test_what_cannot_be_read_is_none(tmp_path):
    assert read_bench(tmp_path) is None
    good = {"machine": {}, "rows": ROWS}
    for wrong in (
        "[{",
        "[]",
        json.dumps({"rows": ROWS}),
        json.dumps({**good, "rows": []}),
        json.dumps({**good, "rows": [{**ROWS[0], "median_ms": None}]}),
        json.dumps({**good, "rows": [{"model": "a", "format": "b"}]}),
        json.dumps({**good, "machine": 7}),
    ):
        (tmp_path / "bench.json").write_text(wrong)
        assert read_bench(tmp_path) is None
    (tmp_path / "bench.json").write_text(json.dumps(good))
    assert read_bench(tmp_path) == good
