"""Take the pictures of the demo page that README and docs/ show: `make screenshots`.

A desktop and a phone, light and dark, of the bundled model, in Debian's Chromium.
"""

import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).parents[1]
CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
DESKTOP, PHONE = {"width": 1320, "height": 900}, {"width": 390, "height": 844}
SMALL = {"width": 1000, "height": 770}
"""So that a page that is mostly photographs is a small file in its own colours."""
PROMPT = "a large red lighthouse at the left on the sea at sunset"
SHOTS = {
    "demo.png": (DESKTOP, "light", "Compare"),
    "demo-dark.png": (DESKTOP, "dark", "Compare"),
    "demo-layers.png": (DESKTOP, "light", "Layers"),
    "blind.png": (SMALL, "light", "Blind test"),
    "demo-phone.png": (PHONE, "light", "Compare"),
    "demo-phone-dark.png": (PHONE, "dark", "Compare"),
}
_MOST_BYTES = 300_000


def main(folder: Path) -> None:
    from spaces_app.app import create_demo, launch_options

    folder.mkdir(parents=True, exist_ok=True)
    demo = create_demo()
    _, url, _ = demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for name, (size, scheme, tab) in SHOTS.items():
            page = browser.new_page(viewport=size, color_scheme=scheme)
            page.goto(f"{url}?__theme={scheme}&seed=7&prompt={PROMPT.replace(' ', '+')}")
            page.wait_for_selector(f"#measures q >> text={PROMPT}", timeout=60_000)
            if tab != "Compare":
                page.get_by_role("tab", name=tab).click()
            if tab == "Layers":
                page.wait_for_selector(".layers table")
            if tab == "Blind test":
                page.click("#blind-begin")
                page.wait_for_selector("[data-pair] img", timeout=60_000)
            page.wait_for_timeout(800)  # pictures fade in
            page.screenshot(path=folder / name, full_page=tab == "Compare")
            page.close()
            _shrink(folder / name)
        browser.close()
    demo.close()


def _shrink(path: Path) -> None:
    """Fewer colours until it is a small file: it is a picture of a page."""
    for colours in (256, 128, 64):
        if path.stat().st_size <= _MOST_BYTES:
            return
        Image.open(path).convert("RGB").quantize(colours).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs")
