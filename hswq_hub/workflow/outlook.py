"""What a publish is going to do, and what it will take: known from headers, before the first gigabyte moves."""

import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ..cli.tables import preview_lines
from ..common.text import duration, megabytes, roughly, text_table
from ..settings import PublishSettings
from ..sources.preview import preview
from ..sources.source import Source, resolve
from .forecast import Forecast
from .memory import Memory, memory_of
from .preflight import arriving_bytes, preflight
from .publish import default_folder, publication, settle
from .quantizing import Quantization
from .recall import recall
from .steps import Step, disk_needs, open_steps

HEADINGS = ("step", "state", "size", "time")


@dataclass(frozen=True)
class Outlook:
    """A publish that has not begun. settings: settled ones. again: see `publish`. arriving: whether the source's file
    is still to be fetched, so that only its header is here."""

    source: Source
    folder: Path
    settings: PublishSettings
    steps: list[Step]
    again: Collection[str] = ()
    arriving: bool = False

    @classmethod
    def of(
        cls,
        source: Source,
        folder: Path | None,
        settings: PublishSettings,
        command: str = "",
        again: Collection[str] = (),
        arriving: bool = False,
    ) -> "Outlook":
        """`folder` None: the default one.

        Raises:
            TargetError: the default folder holds what was made from another checkpoint.
            DeviceError: CUDA asked for and absent.
        """
        settings, folder = settle(settings, source), folder or default_folder(source)
        return cls(source, folder, settings, publication(source, folder, settings, command), again, arriving)

    def check(self) -> None:
        """Raise what is known to prevent it, see `preflight`."""
        preflight(self.source, self.folder, self.settings, self.steps, self.again, self.arriving)

    @cached_property
    def open(self) -> list[Step]:
        """What is still to be done."""
        return open_steps(self.steps, self.again)

    @cached_property
    def forecast(self) -> Forecast:
        return Forecast(self.source, self.settings, self.steps[0].place)

    @cached_property
    def seconds(self) -> float:
        """Estimate for all that is still to be done."""
        return sum(self.forecast.seconds(step) for step in self.open)

    @property
    def estimate(self) -> str:
        """Time and memory of all that is still to be done, in a line."""
        return _estimate(self.forecast, self.open, memory_of(self.source, self.settings))

    def lines(self) -> list[str]:
        """The plan, as people read it on a terminal."""
        parameters = sum(info.values for info in self.source.checkpoint.denoiser_tensors.values())
        disks = disk_needs(self.open, arriving_bytes(self.source) if self.arriving else {})
        facts = [("model", f"{self.source.architecture.title}, {parameters / 1e6:.1f} million parameters")]
        facts += [("disk", f"{megabytes(n)} at most, {megabytes(_free(place))} free") for place, n in disks.items()]
        facts += [("memory", memory.line) for memory in memory_of(self.source, self.settings)]
        if self.open:
            facts.append(("time", _time(self.forecast, self.open)))
        facts.append(("folder", f"{self.folder}/, {megabytes(self.steps[-1].work().kept)} at most to upload"))
        rows = [self._row(step) for step in self.steps]
        return [*(f"  {name:<12}{value}" for name, value in facts), "", text_table(HEADINGS, rows, left=("state",))]

    def _row(self, step: Step) -> tuple[str, ...]:
        if step not in self.open:
            return step.name, "done", megabytes(step.size), duration(step.made.seconds)
        kept = step.work().kept
        return step.name, "to do", f"≤ {megabytes(kept)}" if kept else "", roughly(self.forecast.seconds(step))


def estimate_of(work: Quantization) -> str:
    """The same for a quantization alone."""
    asked = PublishSettings(work.formats, work.recipe, work.how, calibration_memory=work.memory)
    settings = settle(asked, work.source)
    forecast = Forecast(work.source, settings, work.place)
    return _estimate(forecast, open_steps(work.steps()[0]), memory_of(work.source, settings))


def _estimate(forecast: Forecast, steps: list[Step], memories: list[Memory]) -> str:
    if not steps:
        return "all of it was done before"
    return "\n".join([f"time: {_time(forecast, steps)}", *(f"memory: {memory.line}" for memory in memories)])


def _time(forecast: Forecast, steps: list[Step]) -> str:
    basis = "from earlier steps on this model" if forecast.is_measured else "from a short trial"
    return f"{roughly(sum(forecast.seconds(step) for step in steps))}, an estimate {basis}"


class _Enough(Exception):
    """All is known that was asked for."""


def dry_run(
    reference: str,
    folder: Path | None,
    settings: PublishSettings,
    command: Callable[[Source], str],
    again: Collection[str],
    say: Callable[[str], None],
    **lookup,
) -> None:
    """Say line by line what `publish` would do, and raise what would stop it. `lookup`: as of `resolve`.

    Of a model that is elsewhere the header is fetched. Of one in several parts it is not, as they are joined first.

    Raises:
        HSWQError: see `resolve` and `publish`.
    """
    found = preview(reference, lookup["base"], lookup["civitai_endpoint"], lookup["choose"])
    for line in preview_lines(found, lookup["permitted"]):
        say(line)

    def look(source: Source, arriving: bool = True) -> None:
        outlook = Outlook.of(source, folder, settings, command(source), again, arriving)
        for line in outlook.lines():
            say(line)
        outlook.check()
        raise _Enough

    if found.listing is not None:
        found.listing.check_permitted(lookup["permitted"])
        if len(found.listing.files) > 1 and recall(reference, lookup["base"]) is None:
            say("  its steps are known once its parts are here: run `hswq-hub pull` and this again")
            return
    try:
        look(resolve(reference, inspect=look, **lookup), arriving=False)
    except _Enough:
        return


def _free(place: Path) -> int:
    return shutil.disk_usage(place).free
