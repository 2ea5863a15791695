import random
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import minimize

from distill.report.plots import HEIGHT, PALETTE, WIDTH, Series
from distill.report.resolution import apart, resolution_charts, size_chart


def texts(svg):
    return [e for e in ET.fromstring(svg).iter() if e.tag.endswith("text")]


def dots(svg):
    groups = [e for e in ET.fromstring(svg).iter() if e.tag == "g" and e.get("fill")]
    return [
        np.array([[float(dot.get("cx")), float(dot.get("cy"))] for dot in group])
        for group in groups
    ]


def row(model, size, value, task="segmentation", better="higher", dataset="ade"):
    return {
        "model": model,
        "role": "teacher",
        "task": task,
        "dataset": dataset,
        "image_size": size,
        "metric": "miou",
        "value": value,
        "better": better,
    }


def test_points_are_where_a_linear_map_puts_them():
    sizes, values = [224, 336, 512], ([40.0, 44.0, 46.0], [30.0, 20.0, 25.5])
    svg = size_chart([Series(n, sizes, v) for n, v in zip("ab", values, strict=True)], label="t")
    found = dots(svg)
    at = np.concatenate(found)
    for given, drawn in (([*sizes, *sizes], at[:, 0]), ([*values[0], *values[1]], at[:, 1])):
        slope, offset = np.polyfit(given, drawn, 1)
        assert np.abs(np.array(given) * slope + offset - drawn).max() < 0.11
    assert (np.diff(found[0][:, 1]) < 0).all(), "a larger value is higher up"
    assert (at >= 0).all()
    assert (at <= [WIDTH, HEIGHT]).all()
    ticks = {e.text: float(e.get("x")) for e in texts(svg)}
    for size, (x, _) in zip(sizes, found[0], strict=True):
        assert ticks[str(size)] == pytest.approx(x, abs=0.11)


def test_a_name_stands_at_the_end_of_each_line_and_none_covers_another():
    names = [f"model {k}" for k in range(9)]
    series = [Series(name, [224, 448], [40 + k, 50 + 0.01 * k]) for k, name in enumerate(names)]
    svg = size_chart(series, label="t")
    heights = {e.text: float(e.get("y")) for e in texts(svg) if e.text in names}
    assert len(heights) == 9
    assert np.diff(sorted(heights.values())).min() >= 13.9
    assert max(heights.values()) <= HEIGHT
    assert min(heights.values()) >= 8
    order = sorted(names, key=heights.get)
    assert order == names[::-1], "in the order of the values"


def test_heights_are_as_near_as_they_come():
    draw = random.Random(0)
    for _ in range(30):
        wanted = [draw.uniform(0, 200) for _ in range(draw.randint(1, 7))]
        got = apart(wanted, 14, -1e6, 1e6)
        order = np.argsort(wanted)
        assert (np.diff(np.array(got)[order]) >= 14 - 1e-6).all()
        found = minimize(
            lambda y, w=wanted: ((y - np.array(w)) ** 2).sum(),
            np.array([200.0 * k for k in np.argsort(order)]),
            constraints=[
                {"type": "ineq", "fun": lambda y, i=i, j=j: y[j] - y[i] - 14}
                for i, j in pairwise(order)
            ],
        )
        assert np.abs(np.array(got) - found.x).max() < 0.05
    crowded = apart([100, 100, 100], 14, 10, 110)
    assert crowded == pytest.approx([82, 96, 110])
    assert apart([0, 0], 14, 10, 110) == pytest.approx([10, 24])


def test_only_what_was_measured_at_several_sizes_is_drawn():
    rows = [row("a", 224, 40.0), row("a", 448, 45.0), row("b", 224, 30.0), row("b", 448, None)]
    rows += [row("a", 224, 80.0, "knn"), row("b", 512, 70.0, "knn")]
    rows += [row("b", s, 1 / s, "depth", "lower", "nyu") for s in (448, 224, 336)]
    charts = resolution_charts({"models": [{"name": "a"}, {"name": "b"}], "rows": rows})
    assert [chart.title for chart in charts] == ["ade: segmentation miou ↑", "nyu: depth miou ↓"]
    first, second = (dots(chart.drawing) for chart in charts)
    assert [len(points) for points in first] == [2, 1]
    assert (np.diff(second[0][:, 0]) > 0).all(), "in the order of sizes"
    # A model keeps its colour from chart to chart.
    assert f'fill="{PALETTE[1]}"' in charts[1].drawing
    assert f'fill="{PALETTE[0]}"' not in charts[1].drawing
    assert not charts[0].legend


def test_names_are_escaped_and_long_ones_cut_with_a_legend():
    name = "<script>&" + "x" * 40
    rows = [row(name, 224, 40.0), row(name, 448, 45.0)]
    (chart,) = resolution_charts({"models": [{"name": name}], "rows": rows})
    assert "<script>" not in chart.drawing + chart.legend
    shown = [e.text for e in texts(chart.drawing) if e.text.startswith("<script>")]
    assert shown == [name[:16] + "…"]
    assert "x" * 40 in chart.legend
    titles = [e.text for e in ET.fromstring(chart.drawing).iter() if e.tag == "title"]
    assert titles == [name]


def test_one_value_alone_can_be_drawn_and_none_is_refused():
    svg = size_chart([Series("a", [224], [5.0])], label="t")
    assert not re.search("nan|inf", svg)
    with pytest.raises(ValueError, match="needs values"):
        size_chart([], label="t")
    with pytest.raises(ValueError, match="needs values"):
        size_chart([Series("a", [224], [None])], label="t")
