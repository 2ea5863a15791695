import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from distill.report.plots import HEIGHT, WIDTH, Series, legend, line_chart


def paths(svg):
    root = ET.fromstring(svg)
    return [element.get("d") for element in root.iter() if element.tag.endswith("path")]


def points(path):
    return np.array([[float(n) for n in re.findall(r"-?[\d.]+", m)] for m in path.split("L")])


def labels(svg):
    return [e.text for e in ET.fromstring(svg).iter() if e.tag.endswith("text")]


def test_points_are_where_a_linear_map_puts_them():
    x, y = [0, 50, 100], [2.0, 4.0, 3.0]
    at = points(paths(line_chart([Series("a", x, y)], label="t"))[0])
    # One linear map for each axis: fitted by least squares, nothing is left over.
    for given, drawn in ((x, at[:, 0]), (y, at[:, 1])):
        slope, offset = np.polyfit(given, drawn, 1)
        assert np.abs(np.array(given) * slope + offset - drawn).max() < 0.11
    assert at[0, 0] < at[1, 0] < at[2, 0]
    assert at[1, 1] < at[2, 1] < at[0, 1], "a larger value is higher up"
    assert (at >= 0).all()
    assert (at <= [WIDTH, HEIGHT]).all()


def test_log_axis_is_linear_in_the_exponent():
    y = [1000.0, 10.0, 0.1]
    at = points(paths(line_chart([Series("a", [0, 1, 2], y)], label="t", log=True))[0])
    steps = np.diff(at[:, 1])
    assert steps[0] == pytest.approx(steps[1], abs=0.2)
    assert steps[0] > 10


def test_ticks_stand_at_their_values():
    svg = line_chart([Series("a", [0, 100], [0.0, 1.0])], label="t", y_range=(0.0, 1.0))
    assert {"0", "0.2", "0.4", "0.6", "0.8", "1", "20", "100"} <= set(labels(svg))
    top, bottom = points(paths(svg)[0])[::-1, 1]
    ticks = {e.text: float(e.get("y")) - 4 for e in ET.fromstring(svg).iter() if e.text}
    assert ticks["1"] == pytest.approx(top, abs=0.11)
    assert ticks["0.4"] == pytest.approx(bottom + 0.4 * (top - bottom), abs=0.11)


def test_what_is_not_finite_is_a_gap():
    y = [1.0, 2.0, float("nan"), 1.5, None, 3.0, 2.0]
    path = paths(line_chart([Series("a", range(7), y)], label="t"))[0]
    assert path.count("M") == 3
    assert path.count("h0.01") == 1  # the point between two gaps
    assert "nan" not in path


def test_values_that_have_no_logarithm_are_gaps():
    path = paths(line_chart([Series("a", range(3), [1.0, 0.0, 2.0])], label="t", log=True))[0]
    assert path.count("M") == 2


def test_long_series_are_thinned_to_their_means():
    y = np.sin(np.arange(12_000) / 2000)
    path = paths(line_chart([Series("a", range(len(y)), y)], label="t"))[0]
    at = points(path)
    assert len(at) == 300
    means = y.reshape(300, 40).mean(1)
    slope, offset = np.polyfit(means, at[:, 1], 1)
    assert np.abs(means * slope + offset - at[:, 1]).max() < 0.11


@pytest.mark.parametrize(
    ("x", "y"),
    [([5], [1.0]), ([0, 1], [3.0, 3.0]), ([0, 1], [0.0, 0.0]), ([], []), ([0], [float("inf")])],
)
@pytest.mark.parametrize("log", [False, True])
def test_degenerate_series_are_drawn(x, y, log):
    svg = line_chart([Series("a", x, y)], label="t", log=log)
    assert "nan" not in svg
    assert "inf" not in svg
    assert ET.fromstring(svg).get("viewBox") == f"0 0 {WIDTH} {HEIGHT}"


def test_no_series_says_so():
    assert "nothing was logged" in labels(line_chart([], label="t"))


def test_names_are_escaped():
    nasty = "<script>alert(1)</script>\"'><img onerror=x>"
    series = [Series(nasty, [0, 1], [1.0, 2.0])]
    for html in (line_chart(series, label=nasty, x_label=nasty), legend(series)):
        assert "<script" not in html
        assert "<img" not in html
        ET.fromstring(html)  # one well-formed element
    assert "".join(ET.fromstring(legend(series)).itertext()) == nasty


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="zip"):
        line_chart([Series("a", [0, 1], [1.0])], label="t")


def test_lines_can_be_told_apart():
    series = [Series("a", [0, 1], [1, 2], colour=0), Series("b", [0, 1], [1, 2], colour=0, dash=1)]
    strokes = [
        (e.get("stroke"), e.get("stroke-dasharray"))
        for e in ET.fromstring(legend(series)).iter()
        if e.tag.endswith("line")
    ]
    assert len(set(strokes)) == 2
