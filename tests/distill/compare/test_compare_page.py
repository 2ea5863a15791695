"""The section of the page: whole, escaped, drawn where a plain map puts it, legible."""

import json
import re
import xml.etree.ElementTree as ET
from html import unescape
from html.parser import HTMLParser

import pytest
from planted import measured

from distill.compare.answer import compare, plain
from distill.compare.frontier import Costs
from distill.recipe.schema import CompareConfig
from distill.report.bars import Bar, bar_chart, bar_range
from distill.report.compare_page import compare_section
from distill.report.heat import heat
from distill.report.plots import WIDTH
from distill.report.scatter import Point, scatter

NASTY = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}"
COSTS = Costs("GFLOP an image", {"dinov2": 1.0, "siglip": 2.0, "sam": 5.0})


def gap(teachers, task, seed):
    if task == "masks" and "sam" not in teachers:
        return None
    harm = 0.3 if task == "knn" and "sam" in teachers else 0.0
    return 0.2 * len(teachers) - harm + 0.02 * (seed - 1)


def planted(config=None, costs=COSTS):
    comparison, rows, untrained_of = measured(gap, config)
    return plain(compare(comparison, rows, untrained_of, costs))


def elements(svg, tag):
    return [e for e in ET.fromstring(svg).iter() if e.tag == tag]


class Page(HTMLParser):
    """Tags as they open, which have to close in order; attributes and text."""

    VOID = ("wbr", "br", "img", "meta", "link")

    def __init__(self, text):
        super().__init__()
        self.stack, self.tags, self.text = [], [], []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_everything_is_there():
    answer = planted()
    page = Page(compare_section(answer))
    text = re.sub(r"\s+", " ", " ".join(page.text))
    for said in answer["answers"][0]["recommendations"] + answer["answers"][0]["conflicts"]:
        assert said["sentence"] in text
    assert "Adding sam to dinov2 + siglip lowers knn from 44.0 to 38.0" in text
    names = [tag for tag, _ in page.tags]
    assert names.count("table") == 1
    assert names.count("td") == 7 * 5
    # Five charts of contributions (the average and four tasks), and the front.
    assert names.count("svg") == 6
    assert names.count("circle") == 7
    cells = [(a["title"], a["style"]) for tag, a in page.tags if tag == "td" and "style" in a]
    assert any(title == "accuracy 44.0 ±1.2" for title, _ in cells)
    assert any(title == "map 44.0 ±1.2; recall at 1 44.0 ±1.2" for title, _ in cells)


def test_the_best_of_each_column_is_framed():
    rows = compare_section(planted()).split("<tr>")[2:]
    framed = {}
    for row in rows:
        name = unescape(re.search(r'<th scope="row">(.*?)</th>', row)[1])
        framed[name] = ["outline" in cell for cell in re.findall(r"<td[^>]*>", row)]
    # average, knn, depth, image retrieval, masks
    assert framed["dinov2 + siglip"] == [False, True, False, False, False]
    assert framed["dinov2 + siglip + sam"] == [True, False, True, True, True]
    assert not any(framed["sam"])


def test_names_are_escaped():
    text = json.dumps(planted())
    for name in ("sam", "fixed/vit", "GFLOP an image", "knn"):
        assert name in text
        text = text.replace(name, json.dumps(NASTY)[1:-1])
    section = compare_section(json.loads(text))
    page = Page(section)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img", "style", "link"})
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert "{{ 7 * 7 }}" in section
    # In the sentences, the rows and columns of the table, the charts and the list of points.
    assert "".join(page.text).count(NASTY) >= 30


def test_nothing_is_loaded():
    section = compare_section(planted())
    assert "http" not in section
    assert "url(" not in section
    assert not any({"src", "href"} & set(a) for _, a in Page(section).tags)


def test_what_is_not_known_is_left_out():
    section = compare_section(planted(costs=None))
    assert "Quality against cost" not in section
    few = compare_section(planted(CompareConfig(subsets=[["sam"], ["siglip"]], seeds=[0])))
    assert "too few to tell" in few
    assert "What does harm" not in few
    Page(few)


def test_leave_one_out_says_so():
    section = compare_section(planted(CompareConfig(subsets="leave_one_out")))
    assert "Leave one out: what all teachers close less" in section
    assert "Shapley" not in section


def contrast(one, other):
    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    a, b = luminance(one) + 0.05, luminance(other) + 0.05
    return max(a, b) / min(a, b)


def test_a_heat_map_can_be_read():
    values = [n / 50 for n in range(-75, 101)]
    for value in values:
        assert contrast(*heat(value)) >= 4.5, value
    assert heat(0.0)[0] == "#f7f7f7"
    assert heat(1.0)[0] == heat(1.4)[0] == "#0072b2"
    assert heat(-1.0)[0] == heat(-9.0)[0] == "#d55e00"
    # Deeper with every step up from 0.
    lightness = [contrast("#000000", heat(v)[0]) for v in (0, 0.25, 0.5, 0.75, 1)]
    assert lightness == sorted(lightness, reverse=True)


def test_bars_lie_where_a_linear_map_puts_them():
    bars = [Bar("a", 0.5, 0.1, "0.50"), Bar("b", -0.25, None, "-0.25"), Bar("c", None, None, "-")]
    assert bar_range(bars) == (-0.25, 0.6)
    svg = bar_chart(bars, label="t", extent=(-0.25, 0.6))
    first, second = elements(svg, "rect")
    unit = float(first.get("width")) / 0.5
    assert float(second.get("width")) == pytest.approx(0.25 * unit, abs=0.1)
    zero = float(first.get("x"))
    assert float(second.get("x")) + float(second.get("width")) == pytest.approx(zero, abs=0.1)
    whisker = [float(n) for n in re.findall(r"-?[\d.]+", elements(svg, "path")[-1].get("d"))]
    assert whisker[0] == pytest.approx(zero + 0.4 * unit, abs=0.15)
    assert whisker[2] == pytest.approx(zero + 0.6 * unit, abs=0.15)
    assert whisker[2] <= WIDTH


def test_bars_of_nothing_have_a_scale():
    assert bar_range([Bar("a", None, None, "-")]) == (0.0, 1.0)
    assert bar_range([Bar("a", 0.0, 0.0, "0")]) == (0.0, 1.0)


def test_long_names_are_cut_and_kept_whole_beside():
    name = "a-teacher-" * 9
    svg = bar_chart([Bar(name, 1.0, None, "1.00")], label="t", extent=(0, 1))
    assert name + ": 1.00" in [e.text for e in elements(svg, "title")]
    assert max(len(e.text) for e in elements(svg, "text")) <= 44


def test_points_and_their_front():
    points = [
        Point("dear", 4.0, 0.5, None, False),
        Point("good", 2.0, 0.6, 0.1, True),
        Point("cheap", 1.0, 0.2, None, True),
    ]
    svg = scatter(points, label="t", x_label="ms")
    at = [(float(c.get("cx")), float(c.get("cy"))) for c in elements(svg, "circle")]
    per_x = (at[0][0] - at[1][0]) / 2
    assert at[1][0] - at[2][0] == pytest.approx(per_x, abs=0.16)  # drawn to 0.1
    per_y = (at[2][1] - at[1][1]) / 0.4
    assert at[0][1] - at[1][1] == pytest.approx(0.1 * per_y, abs=0.2)
    assert elements(svg, "circle")[0].get("fill") != elements(svg, "circle")[1].get("fill")
    (path,) = [e.get("d") for e in elements(svg, "path")]
    numbers = [float(n) for n in re.findall(r"-?[\d.]+", path)]
    # From the cheap one across to the cost of the good one, then up, then on to the edge.
    assert numbers[:4] == pytest.approx([*at[2], *at[1]], abs=0.1)
    assert [e.text for e in elements(svg, "text")][-3:] == ["1", "2", "3"]


@pytest.mark.parametrize("points", [[], [Point("a", 0.0, 0.0, None, True)]])
def test_few_points_are_drawn(points):
    svg = scatter(points, label=NASTY, x_label=NASTY)
    assert "nan" not in svg
    assert "inf" not in svg
    assert "<script" not in svg
    ET.fromstring(svg)
