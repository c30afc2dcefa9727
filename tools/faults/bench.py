"""Where cases are tried: the command line that they run, and what is there when one begins."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from .children import Children, Run
from .hosts import BASE, CIVITAI_TOKEN, REFERENCE, REPO, Hosts
from .place import Disk
from .steps import BEFORE, PROMPTS, QUICK, STEPS, Place

TARGET = "published/tiny-hswq"


@dataclass(frozen=True)
class Bench:
    """place: a folder for all cases. hub_token: of the account that uploads."""

    place: Path
    children: Children
    hosts: Hosts
    hub_token: str

    @property
    def disk(self) -> Path:
        """Where the disk of the case is."""
        return self.place / "disk"

    @property
    def prepared(self) -> Path:
        """What the run without harm left."""
        return self.place / "prepared"

    @property
    def gates(self) -> Path:
        """Where a run says that it is held, see `forked.hold_in`."""
        return self.place / "gates"

    def start(self, command: str, log: str, *, owner: int = 0, step: str | None = None, moment: str = "") -> Run:
        """A run of `publish` or `status`; held in a step if one is given."""
        words = [command, REFERENCE, "--folder", TARGET, *QUICK.split(), "--base", BASE]
        for option, name in zip(("--prompts", "--evaluation-prompts"), PROMPTS, strict=True):
            words += [option, f"../{name}"]
        words += ["--civitai-endpoint", self.hosts.civitai.url]
        words += ["--repo", REPO] if command == "publish" else []
        environment = {
            "HSWQ_HOME": str(self.disk / "home"),
            "HF_HUB_CACHE": str(self.disk / "hf/hub"),
            "TMPDIR": str(self.disk / "tmp"),
            "HOME": str(self.disk / "user"),
            "MPLCONFIGDIR": str(self.disk / "user"),
            "HF_TOKEN": self.hub_token,
            "CIVITAI_API_TOKEN": CIVITAI_TOKEN,
        }
        return self.children.start(
            words,
            self.place / f"{log}.log",
            environment=environment,
            cwd=str(self.disk),
            step=step,
            moment=moment,
            gates=str(self.gates),
            as_nobody=owner != 0,
        )

    def published(self) -> dict[str, bytes]:
        """What was published: files of the folder, and of the repo."""
        folder = self.disk / TARGET
        files = {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        here = {f"folder/{path}": data for path, data in files.items()}
        return here | {f"repo/{path}": data for path, data in self.hosts.uploaded().items()}


def whole(bench: Bench) -> dict[str, bytes]:
    """A run without harm: what it published. What it leaves is what cases begin with."""
    bench.hosts.begin()
    with Disk(bench.disk):
        run = bench.start("publish", "whole")
        run.wait()
        if run.code != 0:
            raise RuntimeError("\n".join(["the run without harm has failed:", *run.lines]))
        shutil.copytree(bench.disk, bench.prepared, symlinks=True)
        return bench.published()


def prepare(bench: Bench, disk: Disk, place: Place) -> None:
    """Have everything on the disk that the steps before this one make, and nothing else; no gate is open."""
    shutil.rmtree(bench.gates, ignore_errors=True)
    bench.gates.mkdir()
    bench.gates.chmod(0o777)
    bench.hosts.begin()
    if place in BEFORE:
        disk.own()
        return
    number = STEPS.index(place)
    disk.fill_from(bench.prepared)
    for product in (disk.folder / "home/work").glob("*/*/"):
        name = product.name.rpartition("-")[0]
        made = next((n for n, other in enumerate(STEPS) if other.name.replace(" ", "-") == name), number)
        if made >= number or name == "folder":
            shutil.rmtree(product)
    shutil.rmtree(disk.folder / TARGET)
    for loaded_back in (disk.folder / "hf/hub").glob(f"models--{REPO.replace('/', '--')}"):
        shutil.rmtree(loaded_back)
    if number == len(BEFORE):
        shutil.rmtree(disk.folder / "hf")
        (disk.folder / "hf").mkdir()
        disk.own()
