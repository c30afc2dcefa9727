"""What publishing was asked for, from a reference that a person typed to the plan that does it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hswq_runtime.checkpoints.locate import HubOptions

from ..common.speed.gpus import Gpu
from ..hub.destination import Destination
from ..settings import PublishSettings, SourceSettings
from ..sources.find import Found, find
from ..sources.huggingface import Choose
from ..sources.reference import DemoRef, LocalRef, parse, without_secrets
from ..sources.source import Source
from .publish import PublishPlan
from .recall import recall
from .steps import Log


def no_command(_reference: str) -> str:
    """The command line of a publish that none began."""
    return ""


@dataclass(frozen=True)
class PublishRequest:
    """What is to be published, and how: all of it typed, nothing looked up yet.

    reference: as :mod:`hswq_hub.sources.reference` reads it. folder None: the default one. again: see
    :meth:`PublishPlan.of`. command: short reference -> the command line that asks for the same, for the card.
    """

    reference: str
    source: SourceSettings = field(default_factory=SourceSettings)
    settings: PublishSettings = field(default_factory=PublishSettings)
    folder: Path | None = None
    again: tuple[str, ...] = ()
    command: Callable[[str], str] = no_command

    def find(self, choose: Choose | None = None) -> Found:
        """What the reference leads to; nothing of its weights is fetched.

        Raises:
            SourceError: it leads nowhere.
        """
        return find(self.reference, self.source, choose)

    def plan_of(
        self,
        source: Source,
        destination: Destination | None = None,
        *,
        arriving: bool = False,
        gpu: Gpu | None = None,
    ) -> PublishPlan:
        """The plan for `source`, which the reference led to. gpu: see :meth:`PublishPlan.of`."""
        return PublishPlan.of(
            source,
            self.settings,
            self.folder,
            command=self.command(source.reference),
            again=self.again,
            destination=destination,
            arriving=arriving,
            gpu=gpu,
        )

    def plan(self, found: Found, destination: Destination | None = None) -> PublishPlan:
        """Fetch what was found, unless its header shows already that it cannot be published; then the plan.

        Raises:
            NotPermittedError: its creator does not allow it.
            SourceError: no file came of it.
            HSWQError: see :meth:`PublishPlan.check`.
        """
        found.check_permitted()
        if not found.is_here:
            with found.look() as header_only:
                self.plan_of(header_only, arriving=True).check()
        return self.plan_of(found.fetch(), destination)

    def preview(self, found: Found, log: Log, gpu: Gpu | None = None) -> None:
        """Tell `log` line by line what publishing would do, here or on `gpu`, and raise what would stop it. Of weights
        that are elsewhere nothing but the header is fetched.

        Raises:
            NotPermittedError, SourceError, HSWQError: as for :meth:`plan`.
        """
        found.check_permitted()
        with found.look() as source:
            plan = self.plan_of(source, arriving=not found.is_here, gpu=gpu)
            for line in plan.lines():
                log(line)
            plan.check()

    def status(self) -> list[str]:
        """How far the work on it is. No host is asked and nothing is computed.

        Raises:
            HSWQError: the reference means nothing, or a file of this machine is no model.
        """
        meant = parse(self.reference)
        known = None if isinstance(meant, DemoRef) else recall(self.reference, self.source)
        if known is not None:
            return self.plan_of(known).status_lines()
        if isinstance(meant, DemoRef) or (isinstance(meant, LocalRef) and meant.path.is_file()):
            with self.find().look(hub=HubOptions(local_files_only=True)) as source:
                return self.plan_of(source).status_lines()
        name = without_secrets(self.reference)
        return [f"nothing was made of {name} here; `hswq-hub publish {name} --dry-run` says what is to do"]
