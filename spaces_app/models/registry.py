"""The models that can be shown: the bundled one, published folders, published Hub repos.

Opening a model reads its record, figures and card. Weights are fetched, or made, when a picture needs them. A record
is untrusted: its names are never used as paths, and sizes are bounded.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hswq_hub.cards.record import PublishedRecord
from hswq_hub.common.files import file_sha256
from hswq_hub.common.layout import CARD, METRICS, RECORD
from hswq_hub.evaluation.results import ORIGINAL, Evaluation
from hswq_hub.generation.generate import GenerationSettings
from hswq_hub.quantization.plan import Plan
from hswq_hub.sources.find import resolve
from hswq_hub.sources.reference import DEMO, LocalRef, parse
from hswq_hub.workflow.publish import NAIVE
from hswq_runtime.architectures import Architecture
from hswq_runtime.checkpoints.base import configured
from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.checkpoints.locate import HubOptions, is_repo_id, locate
from hswq_runtime.errors import FormatError, HSWQError
from hswq_runtime.formats import Format

from ..request import PROMPT_LENGTH, SIZE_STEP, STEPS, Limits, RequestError
from . import bundled
from .remote import check_components_size, check_size

_EXAMPLES = 5
_LARGEST_SIDE = 2048
_LONGEST_CARD = 60_000
_LARGEST_TEXT, _LARGEST_WEIGHTS = 64 << 20, 40 << 30
"""Bytes of a file that is fetched because a visitor named its repo."""
_WEIGHTS = ".safetensors"
_VISITORS = HubOptions(token=False)
"""A visitor's choice is never fetched with the operator's token."""
_IN_FP8, _IN_INT8, _IN_BOTH = MULTIPLIED = (" in FP8", " in INT8", " in FP8 and INT8")
"""How a file's label ends as ComfyUI computes it on a GPU with such arithmetic."""
_OPEN = 16
"""Models whose records are held at once."""


@dataclass(frozen=True)
class Model:
    """A model and its variants.

    files: label -> what gives the file, fetching or making it; the original comes first if there is one. base: folder
    or Hub repo of the other components. generation: the default arguments of the pipeline's call.
    plans: what gives the plan of each published format. about: Markdown. missing: a sentence on what cannot be
    shown, or "".
    """

    reference: str
    title: str
    architecture: Architecture
    base: str
    files: Mapping[str, Callable[[], Path]]
    generation: GenerationSettings
    examples: tuple[str, ...]
    plans: Callable[[], dict[Format, Plan]]
    about: str
    missing: str = ""

    @property
    def limits(self) -> Limits:
        """The variants and the default settings, as a request is checked against them."""
        settings, ends = self.generation, {Format.INT8.label: _IN_INT8, Format.BEST.label: _IN_BOTH}
        multiplied = (label + ends.get(label, _IN_FP8) for label in self.files if label != ORIGINAL)
        return Limits(tuple(self.files), settings.steps, settings.guidance, settings.size, tuple(multiplied))

    def file(self, label: str) -> Path:
        """The file of a variant, which is the same as it is multiplied in FP8 or INT8."""
        for suffix in MULTIPLIED:
            label = label.removesuffix(suffix)
        return self.files[label]()


class ModelRegistry:
    """The models that visitors may choose, by reference: "demo", a folder, "owner/repo".

    original: the full-precision file of the first one. any_repo: visitors may name other Hub repos. local: whoever
    sees the page sits at this machine, and may name folders of it as well.
    """

    def __init__(
        self, references: Sequence[str] = (DEMO,), *, original: Path | None = None, any_repo=False, local=False
    ):
        self.references, self.any_repo, self._local = tuple(references), any_repo, local
        self._original = original
        self._open: dict[str, Model] = {}

    def model(self, reference: str | None = None) -> Model:
        """The model that `reference` names; None: the first.

        Raises:
            RequestError: it is not among those that may be shown.
            FormatError: what is there was not made by `hswq-hub publish`.
        """
        reference = self.references[0] if reference is None else reference
        if not isinstance(reference, str):
            raise RequestError("a model is named by a text")
        if reference not in self._open:
            model = self._opened(reference)
            if len(self._open) >= _OPEN:
                self._open.pop(next(iter(self._open)))
            self._open[reference] = model
        return self._open[reference]

    def _opened(self, reference: str) -> Model:
        if reference in self.references:
            original = self._original if reference == self.references[0] else None
            return open_model(reference, original)
        if not self.any_repo:
            raise RequestError("this page shows only the models in its list")
        here = Path(reference).exists()
        if (here and not self._local) or (not here and not is_repo_id(reference)):
            raise RequestError("a model is named as owner/repo on the Hub")
        return open_model(reference, hub=_VISITORS)


def open_model(reference: str, original: Path | None = None, hub: HubOptions | None = None) -> Model:
    """The model that `reference` names; `original` is its full-precision file, if that is at hand."""
    if reference == DEMO:
        return _bundled()
    return _published(reference, original, hub or HubOptions())


def _bundled() -> Model:
    import diffusers

    source = resolve(DEMO)
    architecture = source.architecture
    vae = diffusers.AutoencoderKL.load_config(source.base, subfolder="vae")
    files: dict[str, Callable[[], Path]] = {
        ORIGINAL: lambda: source.path,
        NAIVE: lambda: bundled.naive_file(source.checkpoint, source.sha256),
    }
    formats = bundled.shipped_record().files
    files |= {format.label: lambda format=format: bundled.quantized_file(source, format) for format in formats}
    return Model(
        reference=DEMO,
        title="Demo model",
        architecture=architecture,
        base=source.base,
        files=files,
        generation=GenerationSettings.of(architecture, vae),
        examples=source.prompts.evaluation[:_EXAMPLES],
        plans=lambda: bundled.plans(source),
        about=bundled.ABOUT,
    )


def _published(reference: str, original: Path | None, hub: HubOptions) -> Model:
    strange = hub is _VISITORS and not Path(reference).exists()

    def file(name: str) -> Path:
        if strange:
            check_size(reference, [name], _LARGEST_WEIGHTS if name.endswith(_WEIGHTS) else _LARGEST_TEXT)
        return locate(reference, None, name, hub).file

    path = file(RECORD)
    try:
        record = PublishedRecord.from_document(json.loads(path.read_text(encoding="utf-8")))
        architecture = record.architecture
        names = {format: _plain_name(facts.file) for format, facts in record.files.items()}
        base = record.base or reference
        if base != reference and not (base == architecture.base_repo if strange else is_repo_id(base)):
            raise FormatError(f"the record of {reference} names the base {base!r}, which is not fetched")
        if strange and base == reference:
            check_components_size(reference, _LARGEST_WEIGHTS)
        files = {format.label: lambda name=name: file(name) for format, name in sorted(names.items())}
        # What a stranger's record calls the original would be fetched with the operator's tokens.
        files, missing = _with_original(files, {} if strange else record.source, base, original)
        return Model(
            reference=reference,
            title=record.repo[:100],
            architecture=architecture,
            base=base,
            files=files,
            generation=_generation(architecture, Evaluation.load(file(METRICS)).protocol["generation"], strange),
            examples=tuple(_short(example.prompt) for example in record.examples[:_EXAMPLES]),
            plans=lambda: dict(record.plans),
            about=_readable(file(CARD).read_text(encoding="utf-8")),
            missing=missing,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{reference} was not made by `hswq-hub publish`, or is damaged ({error})") from error


def _with_original(
    files: Mapping, source: Mapping, base: str, given: Path | None
) -> tuple[dict[str, Callable[[], Path]], str]:
    """`files` with the original and its naive cast before them, if the original can be had."""
    find = _finder(source, given)
    if find is None:
        return dict(files), (
            "The original is not at hand, so the files are compared with each other; start with --original FILE."
        )
    checked: list[Path] = []

    def fetched() -> Path:
        if not checked:
            path = find()
            if file_sha256(path) != source["sha256"]:
                raise HSWQError(f"{path.name} is not the file that this model was made from")
            checked.append(path)
        return checked[0]

    before = {
        ORIGINAL: fetched,
        NAIVE: lambda: bundled.naive_file(configured(Checkpoint(fetched()), base), source["sha256"]),
    }
    return before | files, ""


def _finder(source: Mapping, given: Path | None) -> Callable[[], Path] | None:
    """What gives the full-precision file that a record's `source` names; None if only its publisher has it."""
    if given is not None:
        return lambda: given
    reference = source.get("reference")
    if not isinstance(reference, str):
        return None
    try:
        found = parse(reference)
    except HSWQError:
        return None
    return None if isinstance(found, LocalRef) else lambda: resolve(reference).path


def _generation(architecture: Architecture, recorded: Mapping, strange: bool) -> GenerationSettings:
    """The settings of the published figures, within bounds. A stranger's may not add arguments to the call."""
    settings = GenerationSettings.of(architecture, {}, recorded=recorded)
    size, steps = settings.size, settings.steps
    if not (SIZE_STEP <= size <= _LARGEST_SIDE and 1 <= steps <= STEPS and math.isfinite(settings.guidance)):
        raise ValueError("settings out of bounds")
    own = GenerationSettings.of(architecture, {})
    if strange and (settings.guidance_argument, settings.call) != (own.guidance_argument, own.call):
        raise ValueError("arguments of the call that this release does not know")
    if len(settings.negative_prompt or "") > PROMPT_LENGTH:
        raise ValueError("a negative prompt that is too long")
    return replace(settings, size=size // SIZE_STEP * SIZE_STEP)


def _plain_name(name: str) -> str:
    if Path(name).name != name or not name.endswith(_WEIGHTS):
        raise ValueError(f"{name!r} is no name of a file")
    return name


def _short(text: str) -> str:
    return " ".join(text.split())[:PROMPT_LENGTH]


def _readable(card: str) -> str:
    """A card as the page can show it: without front matter and without pictures, whose files are elsewhere."""
    body = re.sub(r"\A---\n.*?\n---\n", "", card[:_LONGEST_CARD], flags=re.DOTALL)
    return re.sub(r"!\[[^\]]*\]\([^)]*\)", "", body)
