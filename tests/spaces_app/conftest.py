"""What the tests of the page share."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from spaces_app.models.registry import ModelRegistry


@pytest.fixture
def a_strangers_repo(monkeypatch):
    """Makes the Hub repo "eve/model" of a folder: what would be asked of the Hub is asked of that."""

    def make(folder: Path, size: int = 1000):
        def get_paths_info(self, repo, names):
            assert repo == "eve/model" and self.token is False
            return [SimpleNamespace(path=name, size=size) for name in names if (folder / name).is_file()]

        def located(reference, variant, name, hub):
            assert reference == "eve/model" and hub.token is False
            return SimpleNamespace(file=folder / name)

        def model_info(self, repo, files_metadata):
            assert repo == "eve/model" and self.token is False and files_metadata
            files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name, size=size) for name in files])

        monkeypatch.setattr("huggingface_hub.HfApi.get_paths_info", get_paths_info)
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", model_info)
        monkeypatch.setattr("spaces_app.models.registry.locate", located)
        return ModelRegistry(any_repo=True).model("eve/model")

    return make


@pytest.fixture(scope="module")
def browser():
    """Chromium, without a window."""
    from playwright.sync_api import sync_playwright
    from screenshots import CHROMIUM, FLAGS

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()
