import base64
import re
import shutil
import struct
from html.parser import HTMLParser

import fake_run
import pytest

from distill.report.page import breakable, count, duration, file_size, write_report
from students.errors import UserError

VOID = {"meta", "link", "img", "br", "hr", "wbr"}


class Page(HTMLParser):
    """Elements with attributes and text, and a check that they are closed in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.elements.append({"tag": tag, "text": "", **dict(attributes)})

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, **attributes):
        return [
            element
            for element in self.elements
            if element["tag"] == tag and attributes.items() <= element.items()
        ]

    def section(self, name):
        return self.all("section", id=name)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(fake_run.write_run(tmp_path_factory.mktemp("runs") / "a run"))


@pytest.fixture(scope="module")
def page(report):
    return Page(report.read_text(encoding="utf-8"))


def test_page_lies_in_the_run_folder(report):
    assert report.name == "report.html"
    assert (report.parent / "recipe.yaml").exists()


def test_names_are_text_and_nothing_else(page):
    assert not page.all("script")
    assert not page.all("b")
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert not [name for e in page.elements for name in e if name.startswith("on")]
    whole = page.all("body")[0]["text"]
    for name in (fake_run.SCRIPT, fake_run.IMAGE, fake_run.BRACES, fake_run.STAGE):
        assert name in whole
    assert page.all("title")[0]["text"] == fake_run.SCRIPT


def test_page_refers_to_nothing_outside(report, page):
    text = report.read_text(encoding="utf-8")
    for element in page.elements:
        for name in ("src", "href", "srcset", "action", "data", "xlink:href", "poster"):
            value = element.get(name)
            assert value is None or value.startswith(("data:", "#")), (element["tag"], value)
    style = "".join(e["text"] for e in page.all("style"))
    style += "".join(e["style"] for e in page.elements if "style" in e)
    assert not re.search(r"url\(|@import|expression", style)
    assert "http:" not in text
    assert "https:" not in text
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert "default-src 'none'" in policy


def test_pictures_are_the_files_beside_the_page(report, page):
    files = sorted((report.parent / "pictures").glob("*.png"))
    embedded = [base64.b64decode(e["src"].partition("base64,")[2]) for e in page.all("img")]
    assert sorted(embedded) == sorted(file.read_bytes() for file in files)
    assert len(embedded) == 48
    for data in embedded:
        assert struct.unpack(">II", data[16:24]) == (128, 128)
    captions = [e["text"] for e in page.all("figcaption")]
    assert f"a large red circle {fake_run.SCRIPT} 2" in captions


def test_curves_of_every_stage(page):
    training = page.section("training")[0]["text"]
    assert "Stage proxy" in training
    assert f"Stage {fake_run.STAGE}" in training
    charts = [e["aria-label"] for e in page.all("svg", **{"class": "chart"})]
    explained = "Explained variance, "
    assert charts == [
        "Loss",
        f"{explained}proxy",
        "Loss",
        f"{explained}vit",
        f"{explained}{fake_run.IMAGE}",
    ]
    legends = [e["text"] for e in page.all("ul", **{"class": "legend"})]
    assert any(f"{fake_run.SCRIPT}, dense" in text for text in legends)


def test_students_and_their_parameters(page):
    text = page.section("students")[0]["text"]
    for name in ("proxy/proxy", f"{fake_run.STAGE}/vit", f"{fake_run.STAGE}/{fake_run.IMAGE}"):
        assert name in text
    assert text.count("1.2k") == 3  # 300 x 4, batch statistics not counted


def test_what_was_run(page):
    text = page.section("run")[0]["text"]
    assert "torch 2.9.0, timm 1.0.26" in text
    assert f"5 min 41 s (proxy 3 min 20 s, {fake_run.STAGE} 1 min 41 s, probes 40 s)" in text
    assert "distill run recipes/quickstart.yaml" in text
    assert "None" not in text
    assert page.all("details")[0]["text"].count("stages:") == 1


def test_a_bare_run_gives_a_page(tmp_path):
    run = fake_run.write_run(tmp_path / "run", validation=False, pictures=False, environment=False)
    shutil.rmtree(run / "proxy")
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "No model of this run was validated" in page.section("scores")[0]["text"]
    assert not page.section("pictures")
    assert not page.all("img")
    assert page.section("training")
    shutil.rmtree(run / fake_run.STAGE)
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert not page.section("training")
    assert not page.section("students")


def test_not_a_run_folder(tmp_path):
    with pytest.raises(UserError, match=r"no recipe\.yaml"):
        write_report(tmp_path)
    (tmp_path / "recipe.yaml").write_text("- a\n- b\n")
    with pytest.raises(UserError, match="no stages"):
        write_report(tmp_path)


def test_pictures_outside_the_run_are_refused(tmp_path):
    run = fake_run.write_run(tmp_path / "run")
    grid = run / "pictures" / "pictures.json"
    grid.write_text(grid.read_text().replace('"3.png"', '"../../secret.png"'))
    (tmp_path / "secret.png").write_bytes(b"secret")
    with pytest.raises(UserError, match=r"secret\.png"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_names_break_after_slashes_and_stay_escaped():
    assert breakable("stage/<b>") == "stage/<wbr>&lt;b&gt;"


def test_numbers_for_readers():
    assert [count(n) for n in (512, 97_300, 4_020_000, 1_900_000_000)] == [
        "512",
        "97.3k",
        "4.02M",
        "1.9B",
    ]
    assert [file_size(n) for n in (0, 812, 4_100_000)] == ["0 B", "812 B", "4.1 MB"]
    assert [duration(s) for s in (0.4, 59.7, 341.4, 11_100)] == [
        "0 s",
        "1 min 00 s",
        "5 min 41 s",
        "3 h 05 min",
    ]
