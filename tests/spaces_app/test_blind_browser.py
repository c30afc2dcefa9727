"""The blind test in Chromium, by keyboard and on a phone, to the end of ten. `make test-browser` runs these."""

import base64
import re

import pytest
from screenshots import DESKTOP, PHONE
from support.live_demo import live

from spaces_app.comparison.round import PAIRS, Round

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("shared_home")]
PATIENCE = 180_000  # milliseconds: CI may be slow


@pytest.fixture(scope="module")
def url(home):
    with live() as address:
        yield address


@pytest.fixture
def originals(monkeypatch) -> dict[int, int]:
    """By pair, which of its pictures is the original: 1 or 2. The page itself tells nobody."""
    found = {}
    add = Round.add

    def noted(self, run):
        pair = add(self, run)
        found[pair.number] = self._pairs[pair.number][1] + 1
        return pair

    monkeypatch.setattr(Round, "add", noted)
    return found


@pytest.fixture
def visit(browser, url):
    """Opens the test; afterwards no visit may have met an error in the page's own code."""
    pages, errors = [], []

    def open_test(size=DESKTOP, scheme="light"):
        page = browser.new_page(viewport=size, color_scheme=scheme, has_touch=size is PHONE)
        pages.append(page)
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{url}?__theme={scheme}")
        page.get_by_role("tab", name="Blind test").click()
        page.wait_for_selector("#blind-begin")
        return page

    yield open_test
    for page in pages:
        page.close()
    assert errors == []


def pair(page, number: int) -> None:
    """Wait for that pair."""
    page.wait_for_selector(f".blind[data-pair='{number}'] img")


def result(page) -> str:
    page.wait_for_selector(".blind.result")
    return " ".join(page.inner_text(".blind.result").split())


def test_ten_pairs_by_keyboard_alone(visit, originals):
    page = visit()
    page.focus("#blind-begin")
    page.keyboard.press("Enter")
    for number in range(1, PAIRS + 1):
        pair(page, number)
        wanted = originals[number] if number != 4 else 3 - originals[number]
        if number % 2:
            page.keyboard.press(str(wanted))
        else:
            page.keyboard.press({1: "ArrowLeft", 2: "ArrowRight"}[wanted])
    assert result(page).startswith(
        "9 of 10 right Somebody who guesses gets that many or more in 1.1 % of cases. "
        "That is hardly luck: you can tell V2 from the original."
    )
    assert page.locator(".marks .wrong").all_inner_texts()[0].split()[1] == "4"


def test_with_the_tab_key_the_focus_is_seen_and_stays_where_it_was(visit, originals):
    page = visit()
    page.click("#blind-begin")
    pair(page, 1)
    page.focus(".closer")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    for number in range(1, PAIRS + 1):
        pair(page, number)
        page.wait_for_function("document.activeElement.dataset.choose === '2'")
        label = page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert label == f"Picture 2 is the original, pair {number} of 10"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("Enter" if number % 2 else "Space")
    right = sum(original == 2 for original in originals.values())
    assert result(page).startswith(f"{right} of 10 right")
    assert page.evaluate("document.activeElement.matches('.result')"), "what is read out next"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_ten_pairs_on_a_phone(visit, originals, scheme):
    page = visit(PHONE, scheme)
    page.tap("#against label:has-text('naive FP8')")
    page.tap("#blind-begin")
    for number in range(1, PAIRS + 1):
        pair(page, number)
        page.wait_for_timeout(100)
        boxes = [image.bounding_box() for image in page.locator(".blind .choice").all()]
        assert all(box["y"] >= 0 and box["y"] + box["height"] <= PHONE["height"] for box in boxes), "both are in sight"
        assert all(image.bounding_box()["width"] > 280 for image in page.locator(".blind img").all())
        wrong = 3 - originals[number]
        page.tap(f".frame[data-choose='{wrong}']" if number % 2 else f".choice[data-choose='{wrong}']")
    assert result(page).startswith(
        "0 of 10 right Somebody who guesses gets that many or more in 100 % of cases. So few"
    )
    assert "took naive FP8 for the original" in result(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out at the side"


def test_the_page_does_not_tell_which_is_which(visit, originals):
    page = visit()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.click("#blind-begin")
    for number in range(1, 4):
        pair(page, number)
        sources = [image.get_attribute("src") for image in page.locator(".blind img").all()]
        files = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources]
        assert len(files[0]) == len(files[1]) and files[0][:33] == files[1][:33] and files[0] != files[1]
        sides = [side.evaluate("node => node.outerHTML") for side in page.locator(".blind .side").all()]
        told = [re.sub('src="[^"]*"|aria-label="[^"]*"', "", side) for side in sides]
        assert told[0].replace("1", "2") == told[1].replace("1", "2")
        page.keyboard.press("1")
    assert not [address for address in asked if "/file=" in address], "no pictures with names"


def test_both_are_enlarged_alike_and_smoothly(visit, originals):
    page = visit()
    page.click("#blind-begin")
    pair(page, 1)
    assert page.evaluate("getComputedStyle(document.querySelector('.blind img')).imageRendering") == "auto"
    widths = [page.locator(".blind img").first.bounding_box()["width"]]
    for _ in range(2):
        page.keyboard.press("z")
        widths.append(page.locator(".blind img").first.bounding_box()["width"])
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.01) and widths[2] == pytest.approx(4 * widths[0], rel=0.01)
    page.locator(".blind .frame").first.evaluate("frame => frame.scrollTo(30, 70)")
    page.wait_for_function("document.querySelectorAll('.blind .frame')[1].scrollTop === 70")
    page.keyboard.press("1")
    pair(page, 2)
    assert page.inner_text(".closer") == "4 ×", "the next pair is looked at as closely"
    page.click(".closer")
    assert page.locator(".blind img").first.bounding_box()["width"] == pytest.approx(widths[0], rel=0.01)


def test_it_can_be_stopped_and_begun_again(visit, originals):
    page = visit()
    page.click("#blind-begin")
    pair(page, 1)
    page.keyboard.press("2")
    page.click("#blind-stop")
    page.wait_for_selector("#blind-begin", state="visible")
    assert page.locator(".blind").count() == 0
    page.click("#against label:has-text('INT8')")
    page.click("#blind-begin")
    pair(page, 1)
    page.get_by_role("tab", name="Compare").click()
    page.click("#prompt textarea")
    page.keyboard.press("1")
    page.get_by_role("tab", name="Blind test").click()
    pair(page, 1)
    for number in range(1, PAIRS + 1):
        pair(page, number)
        page.click(f".choice[data-choose='{originals[number]}']")
    assert "10 of 10 right" in result(page) and "you can tell INT8" in result(page)
    assert page.inner_text("#blind-begin") == "Start over"
    page.click("#blind-begin")
    pair(page, 1)
