"""The section of latencies in a real browser: on a desk and on a phone, in light and dark."""

import fake_run
import pytest
import test_browser

from distill.report.page import write_report


@pytest.fixture(scope="module")
def open_page(tmp_path_factory):
    driver = test_browser.start(tmp_path_factory.mktemp("profile"))
    run = fake_run.write_run(tmp_path_factory.mktemp("runs") / "timed")
    fake_run.write_bench(run, fake_run.STUDENTS[0])
    fake_run.write_bench(run, fake_run.STUDENTS[1], speed=1.7)
    report = write_report(run)

    def look(width, scheme):
        test_browser.look(driver, report, width, scheme)
        return driver

    yield look
    driver.quit()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (400, "light")])
def test_section_reads_well(open_page, width, scheme):
    browser = open_page(width, scheme)
    run = browser.execute_script
    assert run("return document.querySelectorAll('#latency table').length") == 2
    assert run("return document.querySelectorAll('#latency circle').length") == 14
    test_browser.fits(run, width)
    heights = run(
        """return [...document.querySelectorAll('#latency .chart text')]
        .map(e => e.getBoundingClientRect().height)"""
    )
    assert min(heights) >= 10
    # No number hides another: the middle of each is its own.
    hidden = run(
        """return [...document.querySelectorAll('#latency circle')].filter(c => {
          c.scrollIntoView({block: 'center'});
          const b = c.getBoundingClientRect();
          const top = document.elementFromPoint(b.x + b.width / 2, b.y + b.height / 2);
          return !top || top.parentNode !== c.parentNode; }).length"""
    )
    assert hidden == 0
    assert browser.get_log("browser") == []
