"""Latencies of a run's students on the page: tables as measured, points where they belong."""

import json
import re
import xml.etree.ElementTree as ET

import fake_run
import pytest
from test_page import Page

from distill.report.contents import RunContents
from distill.report.page import write_report
from distill.retention import retention

VIT = f"{fake_run.STAGE}/{fake_run.STUDENTS[0]}"
FORMATS = [
    "torch",
    "torch-export",
    "onnx",
    "executorch",
    "onnx-int8-dynamic",
    "onnx-int8-static",
    "executorch-int8-dynamic",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = fake_run.write_run(tmp_path_factory.mktemp("runs") / "timed")
    assert RunContents.read(run).benches == {}
    assert not Page(write_report(run).read_text(encoding="utf-8")).section("latency")
    fake_run.write_bench(run, "vit")
    return run


@pytest.fixture(scope="module")
def page(run):
    return Page(write_report(run).read_text(encoding="utf-8"))


def own_gap(run):
    held = json.loads((run / "validation.json").read_text())
    found = retention(held["rows"], held["untrained_of"])
    (one,) = [r for r in found if (r.model, r.task) == (VIT, "average")]
    return one.gap_closed


def test_the_table_is_what_was_measured(page):
    section = page.section("latency")[0]["text"]
    assert "Z80 \"'><img" in section, "text, and no picture"
    assert "2 cores, torch 2.9.0" in section
    heads = re.findall(r"(64|96) px\s*batch (\d), (\d) thread", section)
    assert heads == [
        (size, batch, threads)
        for size in ("64", "96")
        for batch, threads in (("1", "1"), ("8", "1"), ("1", "2"), ("8", "2"))
    ]


def cells(page_text, form):
    """Of the row of a format, the text of its cells."""
    section = page_text.split('<section id="latency">')[1].split("</section>")[0]
    row = next(part for part in section.split("<tr") if f">{form}</th>" in part)
    return [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)]


def test_cells(run, page):
    text = (run / "report.html").read_text(encoding="utf-8")
    gap = own_gap(run)
    first = ["4.00", "32.0", "2.00", "16.0", "9.00", "72.0", "4.50", "36.0"]
    assert cells(text, "torch") == [*first, "321", "123", f"{gap:.3f}"]
    # The fourth file in 8 bits or not, of which the probes say 0.012 is lost.
    assert cells(text, "onnx-int8-dynamic")[-1] == f"{gap - 0.012:.3f}"
    section = text.split('<section id="latency">')[1].split("</section>")[0]
    rows = [part for part in section.split("<tr") if "<td" in part]
    teacher = rows[-1]
    assert fake_run.SCRIPT not in teacher, "escaped"
    found = [re.sub("<[^>]*>", "", c) for c in re.findall(r"<td[^>]*>(.*?)</td>", teacher)]
    assert found[0] == "30.0"
    assert "<small>teacher, torch</small>" in teacher
    assert found[-1] == "\N{EN DASH}", "a teacher is not drawn on the students' scale"


def points(section):
    """(name, x, y, filled) of the circles of the first drawing."""
    svg = "<svg" + section.split("<svg", 1)[1].split("</svg>")[0] + "</svg>"
    found = []
    for group in ET.fromstring(svg).iter("g"):
        circle = group.find("circle")
        name = group.find("title").text
        filled = circle.get("fill") != "#ffffff"
        found.append((name, float(circle.get("cx")), float(circle.get("cy")), filled))
    return found


def test_points_are_quality_over_latency(run, page):
    text = (run / "report.html").read_text(encoding="utf-8")
    section = text.split('<section id="latency">')[1].split("</section>")[0]
    # The run was validated at 64 pixels only.
    assert section.count("<svg") == 1
    assert "latency at 64 pixels" in section
    assert "ms, batch 1, 1 thread" in section
    drawn = points(section)
    # Of one stage, which is not named.
    at = {name.removeprefix("vit, "): (x, y, filled) for name, x, y, filled in drawn}
    assert at.keys() == set(FORMATS)
    xs = [at[form][0] for form in ("onnx-int8-dynamic", "onnx", "executorch", "torch")]
    assert xs == sorted(xs)
    # Twice as long is as far everywhere: 1, 2, (3) and 4 ms.
    assert xs[1] - xs[0] == pytest.approx(xs[3] - xs[1], abs=0.2)
    assert at["torch"][1] == at["onnx"][1] == at["executorch"][1], "float files are the student"
    assert at["onnx-int8-dynamic"][1] > at["onnx"][1], "lower is worse"
    on_front = {form for form, (_, _, filled) in at.items() if filled}
    assert on_front == {"onnx", "onnx-int8-dynamic"}


def test_two_students_share_a_plot_where_the_machine_is_one(tmp_path):
    run = fake_run.write_run(tmp_path / "run")
    fake_run.write_bench(run, "vit")
    other = fake_run.STUDENTS[1]
    fake_run.write_bench(run, other, speed=2.0)
    text = write_report(run).read_text(encoding="utf-8")
    section = text.split('<section id="latency">')[1].split("</section>")[0]
    assert section.count("<svg") == 1
    assert section.count("<table") == 2
    drawn = points(section)
    assert len(drawn) == 2 * len(FORMATS)
    # Numbered from left to right, as the list beside them is.
    assert [x for _, x, *_ in drawn] == sorted(x for _, x, *_ in drawn)
    about = json.loads((run / fake_run.STAGE / other / "bench.json").read_text())
    about["machine"]["processor"] = "6502"
    (run / fake_run.STAGE / other / "bench.json").write_text(json.dumps(about))
    text = write_report(run).read_text(encoding="utf-8")
    assert text.split('<section id="latency">')[1].split("</section>")[0].count("<svg") == 2


def test_without_a_validation_there_are_tables_alone(tmp_path):
    run = fake_run.write_run(tmp_path / "run", validation=False)
    fake_run.write_bench(run, "vit")
    section = Page(write_report(run).read_text(encoding="utf-8")).section("latency")[0]["text"]
    assert "321" in section
    assert "gap closed" not in section
    assert "Quality against" not in section
