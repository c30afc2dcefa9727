"""What a link leads to, from the host's listing and the file's header, and what quantizing it would take on a GPU."""

from dataclasses import dataclass

from huggingface_hub import JobHardwareInfo

from hswq_hub.common.speed.gpus import GPUS, Gpu
from hswq_hub.common.text import megabytes
from hswq_hub.jobs.jobs import Need
from hswq_hub.settings import PublishSettings, SourceSettings, formats_called
from hswq_hub.sources.errors import UnknownReferenceError
from hswq_hub.sources.find import Found, find
from hswq_hub.sources.http.tokens import hub_options
from hswq_hub.sources.reference import LocalRef, parse
from hswq_hub.workflow.request import PublishRequest
from hswq_runtime.errors import HSWQError
from hswq_runtime.formats import Format
from hswq_runtime.text import address

FORMATS = {"V1 and V2": "both", "INT8": Format.INT8.value, "V1, V2 and INT8": "all", "Best mix": Format.BEST.value}
"""What can be made, by its name for people: the value of `--format`."""


class LinkError(HSWQError):
    """A link leads to nothing that a job can read."""


@dataclass(frozen=True)
class Look:
    """A model that was looked at.

    reference: its short form, which means the same file. name: stem of a repo's name for it. facts: what is known, by
    heading. need: memory that its pipeline takes. licence: None: its host states none. objections: why its creator does
    not allow it, each as a clause. closed: whether its repo is private.
    """

    reference: str
    name: str
    facts: tuple[tuple[str, str], ...]
    need: Need
    licence: str | None
    objections: tuple[str, ...] = ()
    closed: bool = False


@dataclass(frozen=True)
class Outlook:
    """By estimate: seconds that a GPU takes, and bytes of the finished folder at most."""

    seconds: float
    bytes: int


def look_at(link: str, *, whole: bool = True) -> Look:
    """What a link leads to. Nothing but its listing, its header and small configurations are fetched.

    whole: whether the components beside the denoiser have to be there, and readable for whom it is looked up.

    Raises:
        LinkError: it is empty, or no link.
        HSWQError: it leads nowhere, or to something that cannot be quantized.
    """
    found = _found(link)
    components = found.components()
    with found.look() as source:
        if whole:
            source.check_components(hub_options())
        checkpoint, architecture = source.checkpoint, source.architecture
        values = sum(info.values for info in checkpoint.denoiser_tensors.values())
    listing = found.listing
    count = f"{values / 1e9:.1f} billion" if values >= 1e8 else f"{values / 1e6:.1f} million"
    facts = [("model", f"{architecture.title}, {count} parameters"), ("from", source.origin)]
    facts.append(("licence", components.licence or "its host states none"))
    if listing is None:
        return Look(str(found.meant), source.name, tuple(facts), Need(0, True), components.licence)
    sizes = (listing.size, components.bytes)
    need = Need(sum(size or 0 for size in sizes), None not in sizes)
    if listing.size is not None:
        facts.append(("to fetch", megabytes(listing.size)))
    if components.base is not None:
        size = f", {megabytes(components.bytes)}" if components.bytes else ""
        facts.append(("other components", f"{components.base}{size}"))
    closed = listing.provenance.private
    return Look(
        listing.reference, listing.name, tuple(facts), need, components.licence, tuple(listing.objections), closed
    )


def outlook(reference: str, format: str, gpu: Gpu) -> Outlook:
    """What publishing the model would take on `gpu`. format: as `--format` has it.

    Raises:
        HSWQError: as :func:`look_at`, or it does not fit.
    """
    with _found(reference).look() as source:
        plan = PublishRequest(reference, settings=PublishSettings(formats=formats_called(format))).plan_of(
            source, arriving=True, gpu=gpu
        )
        for memory in plan.memories:
            memory.check()
        return Outlook(plan.seconds, plan.steps[-1].work().kept)


def gpu_of(machine: JobHardwareInfo) -> Gpu | None:
    """The GPU of a machine, of those whose speed is known; None: it is none of these."""
    if machine.accelerator is None:
        return None
    said = set(str(machine.accelerator.model).casefold().replace("-", " ").split())
    return next((gpu for gpu in GPUS.values() if _model(gpu) <= said), None)


def _model(gpu: Gpu) -> set[str]:
    """The words by which a GPU is told from others: of "A100 80GB" the first, of "RTX 3060 12GB" the first two."""
    words = gpu.name.casefold().split()
    return set(words[:2] if words[0] == "rtx" else words[:1])


def _found(link: str) -> Found:
    link = link.strip()
    if not link:
        raise LinkError("paste a link to a model on Civitai or Hugging Face")
    none = LinkError(
        f"{address(link)} is no link to a model on Civitai or Hugging Face; paste its page's address, or owner/name"
    )
    try:
        meant = parse(link)
    except UnknownReferenceError:
        raise none from None
    if isinstance(meant, LocalRef):  # the same, so that it says nothing of what is on this machine
        raise none
    return find(link, SourceSettings(permitted=True))


def repo_of(visitor: str, name: str) -> str:
    """The repo that a model of this name goes to, unless the visitor chooses another."""
    return f"{visitor}/{name}-HSWQ"
