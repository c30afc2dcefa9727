"""Take the picture of "HSWQ my repo" that docs/ shows: `make screenshots`. The Hub behind it is one on loopback."""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from playwright.sync_api import sync_playwright
from screenshots import CHROMIUM, FLAGS, ROOT
from support.visitors_hub import VisitorsHub, demo_repo

SIZE = {"width": 900, "height": 820}
LINK = "studio/planet"


def main(path: Path) -> None:
    with TemporaryDirectory() as scratch, VisitorsHub(Path(scratch) / "jobs", "ada") as hub:
        hub.repos[LINK] = demo_repo()
        # huggingface_hub reads them when it is imported.
        with patch.dict(os.environ, hub.environment(Path(scratch)) | {"HSWQ_HOME": scratch}):
            from spaces_app.my_repo.app import create_page, launch_options
            from spaces_app.my_repo.login import Login

            door = Login.of(hub.for_the_space())
            page = create_page(door, package="hswq-hub")
            _, url, _ = page.launch(
                server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options(door)
            )
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
                visit = browser.new_page(viewport=SIZE, color_scheme="light")
                visit.goto(url)
                visit.click("#sign-in")
                visit.click("#as-ada")
                visit.wait_for_selector("#account >> text=Signed in as ada")
                visit.fill("#link textarea, #link input", LINK)
                visit.keyboard.press("Enter")
                visit.wait_for_selector("#most", timeout=60_000)
                visit.mouse.move(0, 0)
                visit.wait_for_timeout(800)
                visit.screenshot(path=path)
                browser.close()
            page.close(verbose=False)


if __name__ == "__main__":
    main((Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs") / "my-repo.png")
