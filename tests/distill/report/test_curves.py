"""Curves of the probes that were run while a stage trained."""

import json
import re
import xml.etree.ElementTree as ET

import fake_run
import pytest

from distill.report.contents import RunContents
from distill.report.curves import charts, probe_charts, probe_sizes
from distill.report.page import write_report
from distill.report.plots import PALETTE, Series, line_chart


def line(step, student, task, value, better="higher", metric="m", size=64):
    return {
        "step": step,
        "student": student,
        "seed": 0,
        "task": task,
        "metric": metric,
        "value": value,
        "better": better,
        "samples": 256,
        "image_size": size,
        "seconds": 0.1,
    }


def drawn(chart):
    """{stroke: [(x, y), ...]} of a chart's lines, and the places of its dots."""
    root = ET.fromstring(str(chart.drawing))
    lines = {
        e.get("stroke"): re.findall(r"([\d.]+) ([\d.]+)", e.get("d"))
        for e in root.iter()
        if e.tag.endswith("path")
    }
    dots = [(e.get("cx"), e.get("cy")) for e in root.iter() if e.tag.endswith("circle")]
    return lines, dots


def test_a_chart_for_each_metric_and_a_line_for_each_student():
    lines = [
        *(line(step, s, "knn", 10.0 + step) for step in (5, 10) for s in ("b", "a")),
        *(line(step, "a", "depth", 2.0 - step / 10, "lower", "rmse") for step in (5, 10)),
        line(5, "b", "image_retrieval", 3.0, metric="recall_at_1"),
        line(5, "b", "masks", None),
    ]
    found = probe_charts(lines, ["a", "b"])
    titles = [chart.title for chart in found]
    assert titles == ["knn m", "depth rmse \N{DOWNWARDS ARROW}", "image retrieval recall at 1"]
    knn, depth, retrieval = (drawn(chart) for chart in found)
    assert {colour: len(at) for colour, at in knn[0].items()} == {PALETTE[0]: 2, PALETTE[1]: 2}
    assert list(depth[0]) == [PALETTE[0]]
    assert list(retrieval[0]) == [PALETTE[1]]  # b has the colour of its loss everywhere
    (first, second) = (float(y) for _, y in depth[0][PALETTE[0]])
    assert second > first  # drawn lower
    assert depth[1] == depth[0][PALETTE[0]]  # a dot at each point
    assert len(knn[1]) == 4


def test_a_value_that_there_is_none_of_is_a_gap():
    lines = [line(step, "a", "knn", None if step == 10 else 1.0 * step) for step in (5, 10, 15)]
    (chart,) = probe_charts(lines, [])
    assert str(chart.drawing).count("<circle") == 2
    assert re.search(r' d="M[\d. ]+h0.01M[\d. ]+h0.01"', str(chart.drawing))


def test_many_points_have_no_dots():
    for count, expected in ((40, 40), (41, 0)):
        series = Series("a", range(count), [1.0 * n for n in range(count)])
        assert line_chart([series], label="t", dots=True).count("<circle") == expected
        assert "<circle" not in line_chart([series], label="t")


def test_students_have_the_colours_of_their_losses():
    log = [{"step": 1, "student": name, "loss": 1.0, "teachers": {}} for name in ("x", "y", "z")]
    (losses,) = charts(log)
    (probes,) = probe_charts([line(5, "z", "knn", 1.0)], [entry["student"] for entry in log])
    assert list(drawn(probes)[0]) == [list(drawn(losses)[0])[2]]


def test_sizes():
    assert probe_sizes([line(1, "a", "knn", 1.0)]) == "64 pixels"
    several = [line(1, "a", "knn", 1.0, size=size) for size in (96, 64, 96)]
    assert probe_sizes(several) == "64 and 96 pixels"


@pytest.fixture
def watched(tmp_path):
    run = fake_run.write_run(tmp_path / "run")
    lines = [
        line(step, student, task, value + step)
        for step, value in ((100, 1.0), (200, 2.0), (100, 3.0))  # 100 was written twice
        for student in fake_run.STUDENTS
        for task in ("knn", fake_run.SCRIPT)
    ]
    text = "\n".join(json.dumps(entry) for entry in lines)
    (run / fake_run.STAGE / "validation.jsonl").write_text(text + '\n{"step": 300, "stud')
    return run


def test_what_is_read(watched):
    found = RunContents.read(watched).watched
    assert found["proxy"] == []
    lines = [(e["step"], e["student"], e["task"], e["value"]) for e in found[fake_run.STAGE]]
    assert lines == [
        (step, student, task, value)
        for step, value in ((100, 103.0), (200, 202.0))
        for student in fake_run.STUDENTS
        for task in ("knn", fake_run.SCRIPT)
    ]


def test_the_page_shows_them_in_the_stage_alone_and_escaped(watched):
    text = write_report(watched).read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<img src=x" not in text
    training = text[text.index('id="training"') :]
    assert training.count("Probes on the way, at 64 pixels") == 1
    assert training.count("validate.fast_scenes") == 1
    assert training.count('aria-label="knn m"') == 1
    assert training.index("Probes on the way, at") > training.index("multires&lt;b&gt;")


def test_a_page_without_them_says_nothing_of_them(tmp_path):
    text = write_report(fake_run.write_run(tmp_path / "run")).read_text(encoding="utf-8")
    assert "on the way" not in text
    assert "fast_scenes" not in text
