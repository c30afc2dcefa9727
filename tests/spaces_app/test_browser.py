"""The demo page in Chromium, as people use it. `make test-browser` runs these; `make test` does not."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from screenshots import DESKTOP, PHONE
from support.live_demo import live

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("shared_home")]

VARIANTS = ["original", "naive FP8", "V1", "V2", "INT8"]
PATIENCE = 180_000  # milliseconds: CI may be slow


@pytest.fixture(scope="module")
def url(home):
    with live() as address:
        yield address


@pytest.fixture
def visit(browser, url):
    """Opens the page; afterwards no visit may have met an error in the page's own code."""
    pages, errors = [], []

    def open_page(query="", size=DESKTOP, scheme="light"):
        page = browser.new_page(viewport=size, color_scheme=scheme, has_touch=size is PHONE)
        pages.append(page)
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{url}?__theme={scheme}{query}")
        page.wait_for_selector("#compare")
        if not query:
            page.wait_for_selector("#measures table")  # the comparison that the page begins with
        return page

    yield open_page
    for page in pages:
        page.close()
    assert errors == []


def ask(page, prompt: str) -> None:
    """Type a prompt and press the button; two steps are enough to look at."""
    if not page.is_visible("#steps input[type=number]"):
        page.click("text=More settings")
    page.fill("#steps input[type=number]", "2")
    page.fill("#prompt textarea", prompt)
    page.click("#compare")


def compare(page, prompt: str) -> None:
    ask(page, prompt)
    finished(page, prompt)


def finished(page, prompt: str) -> None:
    page.wait_for_selector(f"#measures q >> text={prompt}")


def figures(page) -> dict[str, list[str]]:
    """The table's cells by variant."""
    return {
        row.get_attribute("data-variant"): row.locator("td").all_inner_texts()
        for row in page.locator("#measures tbody tr").all()
    }


def tiles(page) -> dict[str, np.ndarray]:
    """The pictures of the strip by variant, as the page has them."""
    found = {}
    for tile in page.locator("#strip .tile").all():
        data = tile.locator("img").get_attribute("src").removeprefix("data:image/png;base64,")
        found[tile.get_attribute("data-variant")] = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    return found


def sides(page) -> list[str]:
    """The addresses of the slider's two pictures, once both can be seen."""
    page.wait_for_function(
        "[...document.querySelectorAll('#hero img')].filter(i => i.complete && i.naturalWidth > 0).length === 2"
    )
    return [image.get_attribute("src") for image in page.locator("#hero img").all()]


@pytest.mark.parametrize(
    ("size", "scheme"),
    [(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light"), (PHONE, "dark")],
    ids=["desktop-light", "desktop-dark", "phone-light", "phone-dark"],
)
def test_a_prompt_becomes_pictures_that_differ_as_the_table_says(visit, size, scheme):
    from hswq_hub.generation.metrics import psnr, ssim

    page = visit(size=size, scheme=scheme)
    compare(page, f"a green ring in {scheme} on a {size['width']} background")
    one, other = sides(page)
    assert one != other
    shown, pictures = figures(page), tiles(page)
    assert list(shown) == list(pictures) == VARIANTS
    for variant in VARIANTS[1:]:
        assert shown[variant][0] == f"{ssim(pictures['original'], pictures[variant]):.4f}"
        assert shown[variant][1] == f"{psnr(pictures['original'], pictures[variant]):.1f} dB"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out at the side"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) is (scheme == "dark")


def test_the_slider_moves_and_shows_any_two(visit):
    page = visit()
    before = sides(page)
    handle, picture = page.locator("#hero [data-testid=slider]"), page.locator("#hero img").first
    clip = "document.querySelectorAll('#hero img')[1].style.clipPath"
    middle, box, start = page.evaluate(clip), picture.bounding_box(), handle.bounding_box()
    page.mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] / 2, steps=5)
    page.mouse.up()
    moved = page.evaluate(clip)
    assert middle != moved and float(moved.split()[-1].rstrip("%)")) == pytest.approx(20, abs=3)
    page.click("#right input")
    page.get_by_role("option", name="naive FP8").click()
    page.wait_for_function(f"document.querySelectorAll('#hero img')[1].getAttribute('src') !== {before[1]!r}")
    assert sides(page)[0] == before[0]
    page.get_by_role("tab", name="Difference").click()
    page.wait_for_selector("text=|original − naive FP8|")


def test_earlier_comparisons_are_kept_and_a_link_shows_one_again(visit):
    page = visit()
    compare(page, "a yellow house in the desert at 50% night & day")
    compare(page, "the second of two")
    page.locator("#runs .thumbnail-item").nth(1).click()
    finished(page, "a yellow house")
    page.wait_for_url("**/?model=demo&prompt=a+yellow*")
    again = visit("&" + page.url.split("?")[1])
    finished(again, "a yellow house")
    first, second = tiles(page), tiles(again)
    assert all(np.array_equal(first[variant], second[variant]) for variant in VARIANTS)
    assert again.locator("a.share").get_attribute("href") == page.locator("a.share").get_attribute("href")


def test_a_run_is_cancelled_while_another_visitor_waits(visit):
    page, second = visit(), visit()
    page.goto(page.url.split("?")[0] + "?prompt=a+long+one&steps=60&size=96")
    page.wait_for_selector("#strip .tile.working img")
    ask(second, "the second visitor")
    second.wait_for_function("/queue: 1/.test(document.querySelector('#status').textContent)")
    page.click("#cancel")
    page.wait_for_selector("#status >> text=Stopped.")
    page.wait_for_timeout(1000)
    assert page.inner_text("#status") == "Stopped."
    assert page.is_enabled("#compare") and page.is_disabled("#cancel")
    finished(second, "the second visitor")
    assert page.locator("#strip .tile.done").count() < len(VARIANTS)
    compare(page, "after all")


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda page: page.fill("#prompt textarea", ""), "Write a prompt first."),
        (lambda page: [page.uncheck(f"#variants label:has-text('{v}') input") for v in VARIANTS[1:]], "at least two"),
        (lambda page: page.fill("#seed input", "-5"), "The seed has to be from 0"),
        (
            lambda page: (page.click("text=More settings"), page.fill("#lora textarea", "/etc/passwd")),
            "A LoRA is named as owner/repo/file.safetensors",
        ),
    ],
    ids=["no prompt", "one variant", "negative seed", "local LoRA"],
)
def test_what_is_wrong_is_said_in_the_page(visit, break_it, sentence):
    page = visit()
    break_it(page)
    page.click("#compare")
    page.wait_for_selector(f"#status .status.error >> text={sentence}")
    assert page.is_enabled("#compare")


def test_a_broken_link_is_said_in_the_page(visit):
    page = visit("&prompt=x&size=1000000")
    page.wait_for_selector("#status .status.error >> text=The size has to be from 64 to 192")


def test_layers_and_about(visit):
    page = visit()
    page.get_by_role("tab", name="Layers").click()
    page.wait_for_selector(".layers tbody tr")
    rows = page.locator(".layers tbody tr").count()
    assert rows > 40 and page.locator(".layers .kept").count() > 0
    page.get_by_role("tab", name="About").click()
    page.wait_for_selector("text=Apache-2.0")
