"""The section of a comparison in a real browser, within a report: on a desk and on a phone."""

from pathlib import Path

import pytest
from planted import measured

from distill.compare.answer import compare, plain
from distill.compare.frontier import Costs
from distill.report.compare_page import compare_section
from distill.report.page import write_report

REPORT = Path(__file__).parents[1] / "report"


@pytest.fixture(scope="module")
def open_page(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPORT)
        import fake_run
        import test_browser
    driver = test_browser.start(tmp_path_factory.mktemp("profile"))

    def gap(teachers, task, seed):
        if task == "masks" and "sam" not in teachers:
            return None
        return 0.3 * len(teachers) - 0.5 * ("sam" in teachers) + 0.02 * seed

    costs = Costs("GFLOP an image", {"dinov2": 1.0, "siglip": 2.0, "sam": 5.0})
    section = compare_section(plain(compare(*measured(gap), costs)))
    report = write_report(fake_run.write_run(tmp_path_factory.mktemp("runs") / "compared"))
    page = report.read_text(encoding="utf-8")
    before = '<section id="run">'
    assert page.count(before) == 1
    report.write_text(page.replace(before, section + before), encoding="utf-8")

    def look(width, scheme="light"):
        test_browser.look(driver, report, width, scheme)
        return driver

    yield look
    driver.quit()


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_section_reads_well(open_page, width, scheme):
    browser = open_page(width, scheme)
    run = browser.execute_script
    assert run("return document.querySelectorAll('#compare td').length") == 7 * 5
    assert run("return document.documentElement.scrollWidth <= window.innerWidth")
    outside = run(
        """return [...document.querySelectorAll('#compare *')]
        .filter(e => !e.closest('.scroll') && e.getBoundingClientRect().right > innerWidth + 0.5)
        .map(e => e.outerHTML.slice(0, 80))"""
    )
    assert outside == []
    heights = run(
        """return [...document.querySelectorAll('#compare .chart text')]
        .map(e => e.getBoundingClientRect().height)"""
    )
    assert min(heights) >= 10
    # Text of a chart does not run into its neighbour.
    crossed = run(
        """return [...document.querySelectorAll('#compare .chart g')].filter(g => {
          const t = [...g.querySelectorAll('text')].map(e => e.getBoundingClientRect());
          return t.length > 1 && t[0].right > t[1].left; }).length"""
    )
    assert crossed == 0
    assert browser.get_log("browser") == []
