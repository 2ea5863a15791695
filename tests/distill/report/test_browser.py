"""The report in a real browser: headless Chromium, on a desk and on a phone."""

import base64
import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import fake_run
import fake_validation
import pytest

from distill.report.field_page import write_field_page
from distill.report.page import write_report

SWITCHES = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def start(profile):
    """A browser with its console logged; the test is skipped, or fails, where there is none."""
    binary = next(filter(None, map(shutil.which, NAMES)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        missing = "no chromium and chromedriver on the path"
        if os.environ.get("DISTILL_REQUIRE_BROWSER") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for switch in (*SWITCHES, f"--user-data-dir={profile}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    return webdriver.Chrome(options=options, service=service)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    driver = start(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(fake_run.write_run(tmp_path_factory.mktemp("runs") / "quickstart"))


@pytest.fixture(scope="module")
def validation(tmp_path_factory):
    folder = tmp_path_factory.mktemp("validation") / "published"
    return write_field_page(fake_validation.write_validation(folder))


def look(browser, report: Path, width: int, scheme: str = "light"):
    """Open the page with a viewport of exactly `width` pixels (a window has a least width)."""
    browser.get_log("browser"), browser.get_log("performance")
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(report.as_uri())
    assert browser.execute_script("return window.innerWidth") == width
    if folder := os.environ.get("DISTILL_SCREENSHOTS"):
        everything = {"captureBeyondViewport": True}
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", everything)["data"]
        name = f"{report.parent.name}-{width}-{scheme}.png"
        (Path(folder) / name).write_bytes(base64.b64decode(shot))


@pytest.mark.parametrize("width", [1280, 400])
def test_page_reads_well(browser, report, width):
    look(browser, report, width)
    run = browser.execute_script
    assert run("return document.querySelectorAll('#scores table').length") >= 1
    sizes = run("return [...document.images].map(i => [i.complete, i.naturalWidth, i.width])")
    assert len(sizes) == 48
    assert all(complete and natural == 128 and drawn >= 90 for complete, natural, drawn in sizes)
    fits(run, width)
    assert browser.get_log("browser") == []


def fits(run, width):
    """No page that scrolls sideways, and nothing cut off at its edge outside a scrolling box."""
    assert run("return document.documentElement.scrollWidth <= window.innerWidth")
    outside = run(
        """return [...document.querySelectorAll('main *')]
        .filter(e => !e.closest('.scroll, pre') && e.getBoundingClientRect().right > innerWidth)
        .map(e => e.outerHTML.slice(0, 80))"""
    )
    assert outside == []
    clipped = run("return [...document.querySelectorAll('.scroll')].map(e => e.clientWidth)")
    assert all(0 < inside <= width for inside in clipped)
    # Axis labels of a chart, as drawn.
    tick = "return document.querySelector('.chart text').getBoundingClientRect().height"
    assert run(tick) >= 10


@pytest.mark.parametrize("width", [1280, 400])
def test_validation_reads_well(browser, validation, width):
    look(browser, validation, width)
    run = browser.execute_script
    assert run("return document.querySelectorAll('#scores table').length") == 4
    sizes = run("return [...document.images].map(i => [i.complete, i.naturalWidth, i.width])")
    assert len(sizes) == 15 + 18 + 18 + 15 + 8 + 48 + 2
    assert all(complete and natural >= 128 and drawn >= 90 for complete, natural, drawn in sizes)
    fits(run, width)
    # Text inside a chart stays inside, and no name at the end of a line covers another.
    boxes = run(
        """return [...document.querySelectorAll('.chart')].map(chart => {
        const all = e => {const r = e.getBoundingClientRect(); return [r.x, r.y, r.right, r.bottom]}
        return [all(chart), ...[...chart.querySelectorAll('text')].map(all)]})"""
    )
    assert len(boxes) == 2
    for (left, top, right, bottom), *texts in boxes:
        assert all(left <= x and y >= top and x2 <= right for x, y, x2, _ in texts)
        assert all(y2 <= bottom + 2 for *_, y2 in texts)
        names = texts[-4:]
        assert len({round(x) for x, *_ in names}) == 1, "in a column"
        heights = sorted((y + y2) / 2 for _, y, _, y2 in names)
        assert all(b - a >= 10 for a, b in pairwise(heights))
    assert browser.get_log("browser") == []


def test_nothing_runs_and_nothing_is_loaded(browser, report):
    look(browser, report, 1280)
    assert browser.title == fake_run.SCRIPT
    assert browser.execute_script("return document.scripts.length") == 0
    events = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    asked = {
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    }
    assert {url for url in asked if not url.startswith("data:")} == {report.as_uri()}
    from selenium.common.exceptions import NoAlertPresentException

    with pytest.raises(NoAlertPresentException):
        _ = browser.switch_to.alert.text


def test_dark_page_is_dark(browser, report):
    def lightness(what):
        script = f"return getComputedStyle(document.body).{what}"
        red, green, blue = browser.execute_script(script)[4:-1].split(",")
        return (int(red) + int(green) + int(blue)) / 3

    for scheme, dark in (("light", False), ("dark", True)):
        look(browser, report, 1280, scheme)
        assert (lightness("backgroundColor") < 60) == dark
        assert (lightness("color") > 180) == dark
    assert browser.get_log("browser") == []
