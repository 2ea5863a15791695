import base64
import json
import re
import shutil
import struct

import fake_run
import fake_validation
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from test_page import Page

from distill.report.field_page import render_field_table, write_field_page
from distill.report.field_table import dataset_tables
from distill.report.gallery import Cell, Group, read_pictures, write_pictures
from students.errors import UserError

NONE = "\N{EN DASH}"
NAMES = [name for name, *_ in fake_validation.MODELS]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = fake_validation.write_validation(tmp_path_factory.mktemp("validation") / "published")
    return write_field_page(folder)


@pytest.fixture(scope="module")
def page(report):
    return Page(report.read_text(encoding="utf-8"))


def section(text, name):
    """The HTML of a section."""
    return re.search(rf'<section id="{name}">.*?</section>', text, re.S)[0]


def tables(html):
    """Tables as lists of rows of (tag, attributes, text)."""
    out = []
    for table in re.findall(r"<table.*?</table>", html, re.S):
        rows = re.findall(r"<tr.*?</tr>", table, re.S)
        cells = [re.findall(r"<(t[hd])([^>]*)>(.*?)</\1>", row, re.S) for row in rows]
        out.append(
            [
                [(tag, has, re.sub(r"<[^>]+>", " ", inside).strip()) for tag, has, inside in row]
                for row in cells
            ]
        )
    return out


def score(report, dataset):
    html = section(report.read_text(encoding="utf-8"), "scores")
    titles = re.findall(r"<h3>(.*?)</h3>", html)
    return tables(html)[titles.index(dataset)]


def test_page_lies_in_the_folder_and_refers_to_nothing_outside(report, page):
    assert report.name == "report.html"
    text = report.read_text(encoding="utf-8")
    for element in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "xlink:href", "poster"):
            value = element.get(name)
            assert value is None or value.startswith(("data:", "#")), (element["tag"], value)
    style = "".join(e["text"] for e in page.all("style"))
    style += "".join(e["style"] for e in page.elements if "style" in e)
    assert not re.search(r"url\(|@import|expression", style)
    assert "--ground" in style
    assert "https:" not in text
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert "default-src 'none'" in policy


def test_names_are_text_and_nothing_else(page):
    assert not page.all("script")
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert not [name for e in page.elements for name in e if name.startswith("on")]
    whole = page.all("body")[0]["text"]
    for name in (fake_run.SCRIPT, fake_run.IMAGE, fake_run.BRACES, fake_validation.LONG):
        assert name in whole
    assert page.all("title")[0]["text"] == f"field {fake_run.BRACES}"
    assert "2026-11-21 13:08" in whole


def test_models_are_listed_with_what_they_are(report):
    (table,) = tables(section(report.read_text(encoding="utf-8"), "models"))
    assert [cell[2] for cell in table[1]] == [
        "dinov2-s teacher",
        "facebook/ dinov2-small",
        "22.1M",
        "384",
        "384",
    ]
    assert len(table) == 5


def test_each_data_set_has_a_table_with_every_figure(report):
    found = {}
    for row in fake_validation.results()["rows"]:
        found.setdefault(row["dataset"], []).append(row)
    for dataset, rows in found.items():
        head, *body = score(report, dataset)
        assert len(body) == len(NAMES)
        shown = [re.match(rf"[\d.]+|{NONE}", cell[2])[0] for model in body for cell in model[1:]]
        wanted = []
        for name in NAMES:
            own = [row for row in rows if row["model"] == name]
            for row in own:
                places = 1 if row["better"] == "higher" else 3
                wanted.append(NONE if row["value"] is None else f"{row['value']:.{places}f}")
        assert shown == wanted
        assert len(head) == 1 + len(own)


def test_the_best_of_each_column_is_marked(report):
    for dataset in ("imagenet", "ade20k", "nyu", "spair"):
        _, *body = score(report, dataset)
        for column in range(1, len(body[0])):
            cells = [row[column] for row in body]
            values = [
                float(re.match(r"[\d.]+", c[2])[0]) if c[2][0] != NONE else None for c in cells
            ]
            known = [value for value in values if value is not None]
            best = min(known) if dataset == "nyu" else max(known)
            assert ["best" in has for _, has, _ in cells] == [value == best for value in values]


def test_sizes_are_in_the_heading_or_with_each_figure(report):
    heads = [cell[2] for cell in score(report, "nyu")[0]][1:]
    assert [re.search(r"(\d+)\s*px", head)[1] for head in heads] == ["112", "224", "336", "448"]
    assert all("↓" in head for head in heads)
    spair = [row[1][2] for row in score(report, "spair")[1:]]
    assert [re.search(r"(\d+) px", text)[1] for text in spair] == ["448", "512", "512", "512"]
    assert not any("px" in cell[2] for row in score(report, "imagenet") for cell in row)
    assert "Images of 224 pixels" in report.read_text(encoding="utf-8")


def test_what_is_not_measured_has_its_reason_in_the_cell_and_below(report, page):
    cell = score(report, "imagenet")[1][3]
    assert cell[2] == NONE
    assert f'title="{fake_validation.NO_TEXT.replace(chr(39), "&#39;")}"' in cell[1]
    listed = [e["text"].strip() for e in page.all("details")]
    assert f"dinov2-s, zero shot: {fake_validation.NO_TEXT}" in listed[0]
    assert listed[0].startswith("Not measured: 1")


def test_published_figures_stand_beside_the_measured_ones(report, page):
    assert "publ. 79.0" in score(report, "imagenet")[1][1][2]
    assert report.read_text(encoding="utf-8").count("publ. ") == 1
    listed = [e["text"] for e in page.all("details") if "Published" in e["text"]]
    assert len(listed) == 1
    assert "dinov2-s, knn accuracy k20: 79.0, DINOv2, arXiv 2304.07193, table 4" in listed[0]


def test_protocols_say_how_it_was_done(report):
    (table,) = tables(section(report.read_text(encoding="utf-8"), "protocols"))
    assert [row[0][2] for row in table[1:]] == [
        "knn", "linear", "zero shot", "segmentation", "depth", "correspondence",
    ]  # fmt: skip
    depth = table[5]
    assert [cell[2] for cell in depth[1:4]] == ["nyu", "654", "112, 224, 336, 448"]
    assert "arXiv 0000.00000" in depth[4][2]


def test_pictures_are_the_files_in_their_order(report, page):
    folder = report.parent / "pictures"
    content = json.loads((folder / "pictures.json").read_text())["groups"]
    files = [c["file"] for g in content for row in g["rows"] for c in row if "file" in c]
    embedded = [base64.b64decode(e["src"].partition("base64,")[2]) for e in page.all("img")]
    assert embedded == [(folder / file).read_bytes() for file in files]
    assert len(files) == 15 + 18 + 18 + 15 + 8 + 48 + 2
    for data in embedded:
        assert min(struct.unpack(">II", data[16:24])) >= 128
    wide = page.all("figure", **{"class": "cell wide"})
    assert len(wide) == 8, "two pictures side by side take the room of two"
    whole = page.section("pictures")[0]["text"]
    assert "9 of 9 right" in whole
    assert "outlier tokens: 0.5 % (1 of 192)" in whole
    headings = [e["text"] for e in page.all("h4")]
    assert headings == [*["scene"] * 2, *NAMES * 2, *NAMES[:2]]


def test_curves_are_of_dense_tasks_at_several_sizes(page):
    titles = [e["text"] for e in page.section("resolution")[0:1]]
    assert "ade20k: segmentation miou ↑" in titles[0]
    assert "nyu: depth rmse ↓" in titles[0]
    assert "knn" not in titles[0]
    assert len(page.all("svg", **{"class": "chart"})) == 2


def test_without_pictures_or_sizes_these_parts_are_left_out(tmp_path):
    folder = fake_validation.write_validation(tmp_path / "v", pictures=False)
    results = fake_validation.results()
    results["rows"] = [row for row in results["rows"] if row["dataset"] == "imagenet"]
    del results["name"]
    (folder / "results.json").write_text(json.dumps(results))
    page = Page(write_field_page(folder).read_text(encoding="utf-8"))
    assert [e["id"] for e in page.all("section")] == ["models", "scores", "protocols"]
    assert page.all("h1")[0]["text"] == "v"
    results["rows"] = []
    (folder / "results.json").write_text(json.dumps(results))
    page = Page(write_field_page(folder).read_text(encoding="utf-8"))
    assert "Nothing was measured" in page.section("scores")[0]["text"]


def test_a_task_without_metrics_gives_its_reason_where_others_have_figures():
    results = fake_validation.results()
    undone = {"metric": "", "value": None, "reason": "reaches no teacher"}
    rows = [row for row in results["rows"] if row["task"] == "knn"]
    results["rows"] = [row | undone if row["model"] != NAMES[1] else row for row in rows]
    (table,) = dataset_tables(results)
    assert [column.metric for column in table.columns] == ["accuracy_k20"]
    assert [figures[0].value for figures in table.figures] == [None, 76.4, None, None]
    assert table.figures[0][0].reason == "reaches no teacher"
    assert table.best(0) is None, "one figure alone is not the best of anything"
    results["rows"] = [row | undone for row in rows]
    (table,) = dataset_tables(results)
    assert [(column.task, column.metric) for column in table.columns] == [("knn", "")]


def test_terminal_shows_a_line_a_metric_and_a_column_a_model(report):
    path = report.parent / "results.json"

    def printed(width):
        console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
        console.print(render_field_table(path, width))
        return console.export_text()

    text = printed(140)
    lines = [line for line in text.splitlines() if line.strip()]
    (line,) = [line for line in lines if "linear summary top1" in line]
    assert re.findall(r"\d+\.\d", line) == ["81.0", "80.2", "79.5", "74.4"]
    (line,) = [line for line in lines if "depth rmse ↓, 336 px" in line]
    assert re.findall(r"\d\.\d{3}", line) == ["0.443", "0.520", "0.557", "0.469"]
    (line,) = [line for line in lines if "zero shot top1" in line]
    assert re.findall(r" - |\d+\.\d", line) == [" - ", "76.2", "71.1", "68.3"]
    assert "publ. 79.0" in text
    assert f"imagenet: dinov2-s, zero shot: {fake_validation.NO_TEXT}" in text
    assert all(len(line) <= 140 for line in lines)
    narrow = printed(60)
    assert all(len(line) <= 60 for line in narrow.splitlines())
    assert narrow.count("linear summary top1") == 4
    assert set(re.findall(r"\d+\.\d+", text)) == set(re.findall(r"\d+\.\d+", narrow))


def test_terminal_table_has_the_best_in_bold():
    console = Console(width=140, force_terminal=True, color_system="standard", record=True)
    with console.capture() as capture:
        console.print(render_field_table(fake_validation.results(), 140))
    bold = re.findall(r"\x1b\[1m([\d.]+)\x1b", capture.get())
    assert bold == [
        "78.9", "81.0", "76.2", "33.1", "40.6", "43.1", "44.3",
        "0.580", "0.485", "0.443", "0.423", "52.3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "results.json is not there"),
        ("{", "does not hold the results"),
        ('{"rows": []}', "'models'"),
        ('{"rows": [{"model": "a"}], "models": [{"name": "a"}]}', "a row without 'role'"),
        ('{"rows": [], "models": []}', "holds no models"),
    ],
)
def test_a_folder_without_results_is_said_in_one_line(tmp_path, content, said):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match=said) as error:
        write_field_page(tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report.html").exists()


def test_pictures_are_written_smaller_or_larger_and_read_back(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (300, 600, 3), dtype=np.uint8)
    small = picture[:50, :70]
    rows = [[Cell(text="a"), Cell(picture, "large")], [Cell(), Cell(small)]]
    write_pictures([Group("g", ["x", "y"], rows, ["n"], [("one", "#123456")])], tmp_path / "p")
    (group,) = read_pictures(tmp_path / "p")
    assert group["legend"] == [{"name": "one", "colour": "#123456"}]
    assert group["notes"] == ["n"]
    (one, two), (three, four) = group["rows"]
    assert one == {"text": "a"}
    assert three == {"text": ""}
    assert two["text"] == "large"
    assert Image.open(tmp_path / "p" / two["file"]).size == (480, 240)
    magnified = np.asarray(Image.open(tmp_path / "p" / four["file"]))
    assert (magnified == small.repeat(3, 0).repeat(3, 1)).all()
    assert read_pictures(tmp_path) == []
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        write_pictures([Group("g", ["x", "y"], [[Cell()]])], tmp_path / "q")


@pytest.mark.parametrize("file", ["../secret.png", "/etc/hostname", "none.png"])
def test_only_files_beside_the_index_are_shown(tmp_path, file):
    folder = fake_validation.write_validation(tmp_path / "v", pictures=False)
    (folder / "pictures").mkdir()
    shutil.copy(__file__, folder / "secret.png")
    group = {"title": "", "columns": ["a"], "rows": [[{"file": file}]], "notes": [], "legend": []}
    index = folder / "pictures" / "pictures.json"
    index.write_text(json.dumps({"groups": [group]}))
    with pytest.raises(UserError, match="not a file beside it"):
        write_field_page(folder)
    index.write_text("[]")
    with pytest.raises(UserError, match="does not hold groups of pictures"):
        write_field_page(folder)
