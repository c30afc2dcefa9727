"""What is kept on a machine, and what goes: by age, by what nothing needs any more, never what a run is using."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from hswq_hub.calibration.calibrate import calibrate
from hswq_hub.cli.main import main
from hswq_hub.common import pieces
from hswq_hub.common.home import home
from hswq_hub.common.pieces import Pieces
from hswq_hub.settings import DEFAULT_FORMATS, CalibrationSettings, recipe
from hswq_hub.sources.find import resolve
from hswq_hub.sources.http import cache
from hswq_hub.workflow.collect import kept, prune
from hswq_hub.workflow.quantize import quantize
from hswq_hub.workflow.steps import PRODUCT_RECORD, Step, make, silent
from hswq_hub.workflow.workspace import Workspace

DIGEST = "0" * 64
MONTH = 31 * 86_400


@pytest.fixture
def workspace() -> Workspace:
    return Workspace("model", DIGEST)


def run(workspace: Workspace, target: str, *settings: str) -> list[Step]:
    """A run for `target` of a step for each of `settings`."""

    def fill(folder: Path, _: Pieces) -> None:
        (folder / "product.txt").write_text("made")

    steps = [Step(setting, "quantize", workspace.folder, setting, fill) for setting in settings]
    with workspace.locked(silent):
        workspace.note_need(target, steps)
        make(steps, silent)
    return steps


def age(workspace: Workspace, step: Step) -> None:
    """Let a product be of last month, and every run that needs it."""
    record = step.folder / PRODUCT_RECORD
    record.write_text(json.dumps(json.loads(record.read_text()) | {"finished": time.time() - MONTH}))
    needs = workspace.folder / "needs.json"
    document = json.loads(needs.read_text())
    for need in document.values():
        if step.folder.name in need["products"]:
            need["time"] -= MONTH
    needs.write_text(json.dumps(document))


def names() -> set[str]:
    return {product.name.partition("-")[0] for product in kept().products}


def test_everything_is_listed(workspace):
    run(workspace, "out", "one", "two")
    products = kept().products
    assert {p.workspace for p in products} == {f"model-{DIGEST[:12]}"} and names() == {"one", "two"}
    for product in products:
        folder = workspace.folder / product.name
        assert product.bytes == sum(path.stat().st_size for path in folder.iterdir()) and product.needed
        assert product.days < 1


def test_what_no_target_needs_any_more_goes_whatever_its_age(workspace):
    run(workspace, "out", "one", "two")
    run(workspace, "out", "one", "three")
    assert {p.name.partition("-")[0] for p in prune(older_than=30).products} == {"two"}
    assert names() == {"one", "three"}


def test_what_another_target_needs_stays(workspace):
    run(workspace, "out", "one")
    run(workspace, "elsewhere", "two")
    assert prune(older_than=30).products == [] and names() == {"one", "two"}


def test_what_is_old_goes_although_a_target_needs_it(workspace):
    (old,) = run(workspace, "out", "one")
    run(workspace, "elsewhere", "two")
    age(workspace, old)
    assert [p.name for p in prune(older_than=30).products] == [old.folder.name]
    assert names() == {"two"}


def test_a_run_that_finds_a_product_makes_it_young_again(workspace):
    (old,) = run(workspace, "out", "one")
    age(workspace, old)
    run(workspace, "out", "one")
    assert prune(older_than=30).products == [] and names() == {"one"}


def test_nothing_is_left_of_a_workspace_but_its_lock(workspace):
    run(workspace, "out", "one")
    workspace.write_note({"source": {"path": "x"}})
    prune(older_than=0)
    assert kept().products == [] and os.listdir(workspace.folder) == [".lock"]


def test_what_a_run_is_using_stays(workspace, tmp_path):
    """Its products, needed or not, and the file that it works on, also in the cache of downloads."""
    arrived = tmp_path / "arrived"
    arrived.write_bytes(b"weights")
    path = cache.add(arrived, "model.safetensors", "ab" * 32)
    run(workspace, "out", "one")
    workspace.write_note({"source": {"path": str(path)}})
    with workspace.locked(silent):
        gone = prune(older_than=0)
        assert (gone.downloads, gone.products) == ([], []) and path.is_file() and names() == {"one"}
    gone = prune(older_than=0)
    assert [entry.name for entry in gone.downloads] == ["model.safetensors"] and not path.exists()
    assert names() == set()


def test_what_quantize_made_of_one_format_is_needed_beside_the_other(tmp_path):
    source = resolve("demo")
    calibration = calibrate(source, CalibrationSettings(samples=1, steps=1, device="cpu"))
    nearest = recipe("hswq", rounding="nearest", keep_by="variance", keep_ratio=0.0)
    for format in DEFAULT_FORMATS:
        quantize(source, calibration, [format], tmp_path, nearest, device="cpu")
    workspace = Workspace(source.name, source.sha256)
    assert workspace.note()["source"]["path"] == str(source.path), "prune knows the file while the run is at work"
    assert {"write-v1", "write-v2"} <= {product.name.rpartition("-")[0] for product in workspace.products()}
    assert prune(older_than=30).products == []


def test_what_a_killed_run_left_goes(workspace):
    run(workspace, "out", "one")
    left = workspace.folder / ".one-0123.x"
    (left / "new").mkdir(parents=True)
    (left / "new/weights").write_bytes(b"half")
    (left / ".hswq-lock").touch()
    assert prune(older_than=30).products == [] and not left.exists()


def stopped(workspace: Workspace, target: str, setting: str) -> Step:
    """A run for `target` that was stopped inside its step, of which it had kept something."""

    def stop(_: Path, pieces: Pieces) -> None:
        pieces.begin()
        pieces.add(torch.zeros(100))
        pieces.keep("half of it", lambda: None)
        raise KeyboardInterrupt

    step = Step(setting, "quantize", workspace.folder, setting, stop)
    with workspace.locked(silent):
        workspace.note_need(target, [step])
        with pytest.raises(KeyboardInterrupt):
            make([step], silent)
    return step


def test_pieces_of_a_product_are_kept_as_long_as_one_is_needed(workspace, monkeypatch):
    monkeypatch.setattr(pieces, "INTERVAL", 0)
    step = stopped(workspace, "out", "one")
    (product,) = kept().products
    assert (product.name, product.needed) == (step.pieces.name, True) and product.bytes > 400 and product.days < 1
    assert prune(older_than=30).products == [] and step.pieces.is_dir()
    assert workspace.products_besides([step]) == []
    stopped(workspace, "out", "two")
    assert [product.name for product in prune(older_than=30).products] == [step.pieces.name]
    assert not step.pieces.exists() and len(kept().products) == 1
    assert prune(older_than=0).products != [] and os.listdir(workspace.folder) == [".lock"]


def test_pieces_go_when_the_product_is_there(workspace, monkeypatch):
    monkeypatch.setattr(pieces, "INTERVAL", 0)
    left = stopped(workspace, "out", "one").pieces
    shutil.copytree(left, workspace.folder / "copy")
    run(workspace, "out", "one")
    assert not left.exists()
    shutil.copytree(workspace.folder / "copy", left)  # a run was killed before they went
    run(workspace, "out", "one")
    assert not left.exists()


def test_a_run_that_begins_meanwhile_waits(workspace, monkeypatch):
    run(workspace, "out", "one")
    found = []

    def look(*_, **__):
        with workspace.locked_if_free() as ours:
            found.append(ours)
        return []

    monkeypatch.setattr(cache, "prune", look)
    prune(older_than=30)
    assert found == [False]


def test_the_commands_show_both(workspace):
    run(workspace, "out", "one", "two")
    run(workspace, "out", "one")
    listed = CliRunner().invoke(main, ["cache", "list"])
    assert listed.exit_code == 0 and str(home()) in listed.stdout
    rows = [line.split() for line in listed.stdout.splitlines() if "model-" in line]
    assert {row[1].partition("-")[0]: row[-1] for row in rows} == {"one": "yes", "two": "no"}
    gone = CliRunner().invoke(main, ["cache", "prune"])
    assert gone.exit_code == 0 and "two-" in gone.stdout and "one-" not in gone.stdout
    assert names() == {"one"}
