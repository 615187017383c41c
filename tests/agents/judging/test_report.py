"""The report in a browser: offline, complete, usable with a keyboard and on a narrow screen."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopwright.agents.judging.report import write_html
from tests.agents.judging.test_statistics import evaluation, planted

BROWSER = os.environ.get("LOOPWRIGHT_BROWSER") or shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run"]  # fmt: skip

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium on the PATH or in LOOPWRIGHT_BROWSER")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(write_html(evaluation(planted(0.7, seed=1)), {"command": "loopwright evaluate"}))
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield opened
        opened.close()


@pytest.mark.parametrize("width", [1280, 400])
def test_the_report_opens_offline_and_draws_everything(browser: object, report: Path, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, offline=True)  # type: ignore[attr-defined]
    page = context.new_page()
    problems: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    assert problems == []
    assert requests == [report.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    figures = page.query_selector_all("figure svg")
    assert len(figures) == 2 + 4  # ratios and profiles; the best, two typical and the worst task
    for figure in figures:
        box = figure.bounding_box()
        assert box["width"] > 300
        assert box["height"] > 100
        assert box["x"] + box["width"] <= width
        assert figure.evaluate("svg => svg.querySelectorAll('path').length") > 5
    for table in page.query_selector_all("table"):
        assert table.query_selector("caption").inner_text()
        assert table.query_selector_all("tbody tr")
    context.close()


def test_the_report_is_usable_with_a_keyboard(browser: object, report: Path) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 800})  # type: ignore[attr-defined]
    page.goto(report.as_uri())
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        tag = page.evaluate("document.activeElement.tagName")
        if tag == "BODY":
            break
        reached.append(tag)
    assert reached[0] == "A"  # to the results
    assert {"A", "SECTION", "SUMMARY", "PRE"} <= set(reached)
    table = page.locator("section.table").first
    table.focus()
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    page.wait_for_timeout(500)
    assert table.evaluate("section => section.scrollLeft") > 0  # what does not fit can be scrolled to
    summary = page.locator("summary").first
    summary.focus()
    page.keyboard.press("Enter")
    assert not page.evaluate("document.querySelector('details').open")
    page.close()
