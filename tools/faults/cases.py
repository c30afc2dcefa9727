"""A case: a run that is hurt in one step, what it leaves, and the run after it."""

import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from .children import Children, Run
from .faults import TWICE, Fault, hurt, relieve
from .hosts import CIVITAI_TOKEN, REFERENCE, REPO, Hosts
from .place import Disk
from .promises import IN_TMP, broken_promises, message_of
from .steps import BEFORE, PLANNED, QUICK, STEPS, Place

TARGET = "published/tiny-hswq"
STOPS = (".lock", ".locks")
"""Hidden names that stay."""


@dataclass(frozen=True)
class Row:
    """What came of a case, as the page has it. broken: promises that do not hold; none is what should be."""

    fault: str
    step: str
    code: str
    message: str
    left: str
    after: str
    broken: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bench:
    """Where cases are tried. place: a folder for all of them. hub_token: of the account that uploads."""

    place: Path
    children: Children
    hosts: Hosts
    hub_token: str

    @property
    def disk(self) -> Path:
        return self.place / "disk"

    @property
    def prepared(self) -> Path:
        """What the run without harm left."""
        return self.place / "prepared"

    def start(self, command: str, log: str, *, owner: int = 0, step: str | None = None, moment: str = "") -> Run:
        """A run of `publish` or `status`; held in a step if one is given."""
        words = [command, REFERENCE, "--folder", TARGET, *QUICK.split(), "--base", "alice/base"]
        words += ["--prompts", "../calibration.txt", "--evaluation-prompts", "../evaluation.txt"]
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
        gates = self.place / "gates"
        facts = {"step": step, "moment": moment, "gates": str(gates), "as_nobody": owner != 0}
        return self.children.start(
            words, self.place / f"{log}.log", environment=environment, cwd=str(self.disk), **facts
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
        shutil.rmtree(bench.prepared, ignore_errors=True)
        shutil.copytree(bench.disk, bench.prepared, symlinks=True)
        return bench.published()


def prepare(bench: Bench, disk: Disk, place: Place) -> None:
    """Have everything on the disk that the steps before this one make, and nothing else."""
    number = STEPS.index(place)
    if place in BEFORE:
        disk.own()
        return
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


def tried(bench: Bench, fault: Fault, place: Place, reference: dict[str, bytes]) -> Row:
    """Try one case."""
    hosts, gates = bench.hosts, bench.place / "gates"
    shutil.rmtree(gates, ignore_errors=True)
    gates.mkdir()
    gates.chmod(0o777)
    hosts.begin()
    with Disk(bench.disk, fault.owner) as disk:
        prepare(bench, disk, place)
        if place.held is not None:
            hosts.hold(*place.held)
        step = place.name if place.held is None else None
        run = bench.start("publish", "hurt", owner=fault.owner, step=step, moment=fault.moment)
        held = (gates / "reached").exists if step else lambda: hosts.holds
        if not run.wait(held) or run.poll() is not None:
            raise RuntimeError("\n".join([f"never got to {place.name}:", *run.lines]))
        other = None
        if fault is TWICE:
            other = bench.start("publish", "other")
            other.wait(lambda: any("waiting for it" in line for line in other.lines), 5)
        hurt(fault, run, disk, hosts)
        asked = hosts.asked
        if place.held is not None:
            hosts.let_go()
        (gates / "reached.go").touch()
        ended = run.wait((gates / "done").exists)
        asks = hosts.asked > asked
        if run.poll() is None:
            relieve(fault, run, disk, hosts)
            (gates / "done.go").touch()
            ended = ended and run.wait()
        if not ended:
            run.kill()
        relieve(fault, run, disk, hosts)
        codes = [run.code]
        if other is not None:
            other.wait()
            codes.append(other.code)
        left, done = remains(bench, disk), finished(bench, fault.owner)
        again = bench.start("publish", "again", owner=fault.owner)
        again.wait()
        after = bench.published()
        differing = sorted(name for name in reference.keys() | after.keys() if reference.get(name) != after.get(name))
        shown = other if other is not None else run
        message = "" if fault.codes == (137,) else message_of(shown.lines)
        if fault.answer is not None and not asks and place.held is None:
            message = "— the step asks no host"
        broken = broken_promises(fault, codes, shown.lines, again, differing, remains(bench, disk), done)
        return Row(
            fault.name,
            place.name,
            ", ".join("hangs" if code is None else str(code) for code in codes),
            plain(message, bench),
            "; ".join([*([steps_as_text(done)] if done is not None else []), *left]),
            "same bytes" if again.code == 0 and not differing else "differs",
            tuple(plain(text, bench) for text in broken),
        )


def finished(bench: Bench, owner: int) -> list[str]:
    """The steps that `status` calls done."""
    run = bench.start("status", "status", owner=owner)
    run.wait()
    lines = run.said.read_text().splitlines() if run.said.exists() else []
    return [name for name in PLANNED if any(re.match(rf"{name}\s+done\b", line) for line in lines)]


def steps_as_text(done: list[str]) -> str:
    """Which steps are done, in as few words as that takes."""
    if not done:
        return "no step"
    in_order = len(done) > 1 and done == list(PLANNED[: len(done)])
    return f"{done[0]} to {done[-1]}" if in_order else ", ".join(done)


def remains(bench: Bench, disk: Disk) -> list[str]:
    """What is there besides finished products: kinds of it."""
    found = set()
    for path in sorted(disk.folder.rglob("*")):
        inside = path.relative_to(disk.folder).parts
        if path.name.endswith(".pieces"):
            found.add("pieces of a step")
        elif inside[0] == "tmp" and len(inside) > 1:
            found.add(IN_TMP)
        elif path.match("home/cache/partial/*") and path.suffix not in (".lock", ".json"):
            found.add("half of the download")
        elif path.name.endswith(".incomplete"):
            found.add("half of a component")
        elif is_hidden(path.name) and not any(map(is_hidden, inside[:-1])) and inside[0] in ("home", "published"):
            found.add("a temporary folder" if path.is_dir() else "a temporary file")
    return sorted(found)


def is_hidden(name: str) -> bool:
    """Whether it is the name of something that is not there yet."""
    return name.startswith(".") and name not in STOPS


def plain(text: str, bench: Bench) -> str:
    """A message without what differs from run to run."""
    text = text.replace(str(bench.disk), "")
    text = re.sub(r"http://(127\.0\.0\.1|localhost):\d+", "http://HOST", text)
    text = re.sub(r"127\.0\.0\.1|localhost", "HOST", text)
    text = re.sub(r"\b[0-9a-f]{10,64}\b", "…", text)
    return re.sub(r"-…\.\w{8}/", "-…/", text)


def as_json(row: Row) -> dict[str, object]:
    return asdict(row)
