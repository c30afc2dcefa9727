"""The model card: the record and figures of a published folder, or a catalog entry, rendered by one template."""

import re
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import TemplateError

from hswq_runtime.architectures import ARCHITECTURES, Architecture
from hswq_runtime.errors import FormatError
from hswq_runtime.formats import Format, Number
from hswq_runtime.text import shown

from ..common.files import write_atomically
from ..common.layout import CARD, CONTENTS, IMAGES, LICENCE_FILE, METRICS, RECORD
from ..evaluation.intervals import CONFIDENCE
from ..evaluation.perceptual import METRICS as SEEN
from ..evaluation.plots import ARITHMETIC, SENSITIVITY, SIZES, WEIGHTS
from ..evaluation.report import (
    MULTIPLIED,
    earlier_table,
    floor_label,
    headings,
    pair_table,
    protocol_table,
    short,
    table,
)
from ..evaluation.results import ORIGINAL, Evaluation, VariantResult
from ..evaluation.verdict import AgainstNoise, against_noise, comparisons, multiplied
from ..generation.generate import GenerationSettings
from ..quantization.plan import LINEAR
from ..settings import COMPENSATED, DEFAULT_FORMATS
from ..sources.catalog import Entry, catalog, entry_of
from ..sources.errors import UnknownReferenceError
from ..sources.listing import NSFW_TAG
from .environment import environment, literal
from .markdown import Shown, front_matter
from .record import Example, PublishedRecord

_NOT_AS_WRITTEN = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
    TemplateError,
)
"""What comes of a record or of figures that `publish` did not write."""
_SITE = "https://huggingface.co"
"""What cards link to: `HF_ENDPOINT` may be a mirror."""


@dataclass(frozen=True)
class KeptLayer:
    """A layer that is in full precision in at least one published file.

    reasons: one for each of them, in their order; its number format where it is quantized.
    """

    layer: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Card:
    """What the template needs. Every figure comes from the folder's metrics.json and hswq.json."""

    record: PublishedRecord
    """hswq.json, or as much of it as the catalog knows."""
    evaluation: Evaluation | None
    """None: nothing was measured here."""
    files: list[str]
    """The folder's pictures, relative to the folder."""

    @property
    def architecture(self) -> Architecture:
        """With the facts of the variant, if it is one."""
        return self.record.architecture

    @classmethod
    def from_folder(cls, folder: Path) -> "Card":
        """Read a folder that `publish` made.

        Raises:
            FormatError: it lacks hswq.json or metrics.json, or they are not what `publish` writes.
        """
        record, evaluation = PublishedRecord.load(folder), Evaluation.load(folder / METRICS)
        files = sorted(f"{IMAGES}/{path.name}" for path in (folder / IMAGES).glob("*.png"))
        return cls(record, evaluation, files)

    @classmethod
    def from_catalog(cls, entry: Entry) -> "Card":
        """What is known of a model of the catalog before anything was made from it: no figure of ours."""
        architecture = ARCHITECTURES[entry.architecture]
        record: dict[str, Any] = {
            "name": entry.name,
            "repo": f"{entry.name}-hswq",
            "architecture": entry.architecture,
            "base": architecture.base_repo,
            "licence": entry.licence,
            "source": {
                "origin": f"{entry.name} {entry.release} on Civitai",
                "reference": entry.reference,
                "url": entry.url,
                "version": entry.release,
            },
            "command": f"hswq-hub publish {entry.name}",
            "recipe": {},
            "files": {},
            "layers": {format.value: [] for format in Format},
            "examples": [],
            CONTENTS: [],
        }
        return cls(PublishedRecord.from_document(record), None, [])

    @property
    def metadata(self) -> ModelCardData:
        """What the front matter states."""
        source, licence = self.record.source, self.record.licence
        base = source.get("repo") or self.record.base
        return ModelCardData(
            model_name=self.record.repo.split("/")[-1] if self.evaluation else None,
            license=licence,
            license_name=self.record.licence_name if licence == "other" else None,
            license_link=self.licence_link if licence == "other" else None,
            base_model=[base] if base else None,
            base_model_relation="quantized" if base else None,
            library_name="diffusers",
            pipeline_tag="text-to-image",
            tags=self._tags(),
            quantized_by=self.record.quantized_by,
            thumbnail=self._thumbnail(),
            eval_results=self._eval_results(),
            widget=[{"text": example.prompt, "output": {"url": example.image}} for example in self.record.examples]
            or None,
        )

    @property
    def front_matter(self) -> str:
        """The same as text, whatever strangers wrote."""
        data = front_matter(self.metadata.to_dict())
        return Shown(yaml.safe_dump(data, sort_keys=False, allow_unicode=True).strip())

    def _tags(self) -> list[str]:
        numbers = [number.lower() for number in self.numbers]
        tags = ["hswq", *numbers, "quantized", "diffusion-single-file", self.architecture.name]
        if not self.has_diffusers_layout:
            tags.append("comfyui")
        if self.record.source.get("nsfw"):
            tags.append(NSFW_TAG)
        return tags

    def _thumbnail(self) -> str | None:
        """It has to be an address, which is known once the repo has an owner."""
        examples = self.record.examples
        return f"{self.repo_url}/resolve/main/{examples[0].image}" if examples and self.repo_url else None

    def _eval_results(self) -> list[EvalResult] | None:
        return [
            EvalResult(
                task_type="text-to-image",
                dataset_type="held-out-prompts",
                dataset_name=f"{len(variant.pairs)} held-out prompt and seed pairs",
                metric_type="ssim",
                metric_name=f"SSIM against the original, {variant.label}",
                metric_value=round(variant.ssim_mean, 4),
            )
            for variant in self.published
        ] or None

    @property
    def repo_url(self) -> str | None:
        """Where it is on the Hub; None for a folder that has no owner there."""
        return f"{_SITE}/{self.record.repo}" if "/" in self.record.repo else None

    @property
    def has_diffusers_layout(self) -> bool:
        """Whether the tensors have the names of diffusers' parameters, as a diffusers repo has them."""
        return "layout" in self.record.source

    @property
    def licence_link(self) -> str | None:
        """What the source's host links to, else the text that is in the folder."""
        return self.record.licence_link or (LICENCE_FILE if LICENCE_FILE in self.record.contents else None)

    @property
    def formats(self) -> list[Format]:
        """Those that are published."""
        return [format for format in Format if format in self.record.files]

    @property
    def numbers(self) -> list[str]:
        """The number formats that linear layers have in the published files, or may have in those to be: FP8, INT8."""
        linear = (d for f in self.formats for d in self.record.plans[f].quantized if d.kind == LINEAR)
        found = {decision.number.name for decision in linear}
        return sorted(found or {n.name for f in self.formats or DEFAULT_FORMATS for n in f.numbers})

    @property
    def mixed(self) -> dict[str, int]:
        """How many linear layers of a file that mixes number formats have each of them."""
        plan = self.record.plans.get(Format.BEST)
        linear = [d for d in plan.quantized if d.kind == LINEAR] if plan else []
        return {number.name: sum(d.number is number for d in linear) for number in Number if linear}

    @property
    def original(self) -> VariantResult | None:
        return self.evaluation.variant(ORIGINAL) if self.evaluation else None

    @property
    def published(self) -> list[VariantResult]:
        """What was measured of the published files."""
        labels = {format.label for format in self.formats}
        return [variant for variant in self.evaluation.variants if variant.label in labels] if self.evaluation else []

    @property
    def baselines(self) -> list[VariantResult]:
        """What was measured besides, to compare with."""
        labels = {ORIGINAL, *(variant.label for variant in self.published)}
        return [v for v in self.evaluation.variants if v.label not in labels] if self.evaluation else []

    @property
    def best(self) -> VariantResult | None:
        """The published file whose pictures are closest to the original's."""
        return max(self.published, key=lambda variant: variant.ssim_mean, default=None)

    @property
    def images(self) -> list[str]:
        """Pictures side by side."""
        return [name for name in self.files if name.startswith(f"{IMAGES}/compare-")]

    @property
    def sheets(self) -> list[tuple[str, Example]]:
        """Pictures side by side, each with the example that it shows, that with the lowest SSIM before the others."""
        pairs = list(zip(self.images, self.record.examples, strict=True))
        first, others = pairs[:1], pairs[1:]
        return first + sorted(others, key=lambda pair: not pair[1].worst)

    @property
    def kept(self) -> list[KeptLayer]:
        """The layers that are in full precision in one of the published files."""
        plans = [self.record.plans[format] for format in self.formats]
        reasons = [{d.layer: d.number.name if d.quantized else d.reason for d in plan.decisions} for plan in plans]
        layers = {d.layer: None for plan in plans for d in plan.kept}
        return [KeptLayer(layer, tuple(found.get(layer, "") for found in reasons)) for layer in layers]

    def has_scaled_convolutions(self, format: Format) -> bool:
        """Whether the file of `format` has scales that stock ComfyUI does not read."""
        quantized = self.record.plans[format].quantized
        return format.scaled and any(d.kind == "Conv2d" and not d.unscaled for d in quantized)

    @property
    def verdict_lines(self) -> list[str]:
        """Which file is closer to the original, and if V1 is not, why: a sentence for each comparison."""
        template = environment().get_template("verdict.j2")
        text = template.render(
            comparisons=comparisons(self.evaluation) if self.evaluation else [],
            multiplied=multiplied(self.evaluation) if self.evaluation else [],
            against_noise=self._against_noise(),
            short=short,
            work=self.rounded_work,
            label=MULTIPLIED,
            unscaled=self._unscaled(),
        )
        return [line for line in text.splitlines() if line]

    def _against_noise(self) -> list[AgainstNoise]:
        """Of the published files."""
        published = {variant.label for variant in self.published}
        return [n for n in against_noise(self.evaluation) if n.file in published] if self.evaluation else []

    @property
    def rounded_work(self) -> dict[str, float]:
        """By label, the share of the linear layers' work that a file wants in FP8 or INT8; not of files that say
        nothing."""
        shares = {}
        for format in self.formats:
            chosen = [d.work for d in self.record.plans[format].quantized if d.rounds_input and d.work]
            if chosen:
                shares[format.label] = sum(chosen)
        return shares

    @property
    def earlier(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Headings and rows of the versions that were in the repo before this one; no rows without."""
        return earlier_table(self.record.earlier, self.record.repo)

    @property
    def reported(self) -> Entry | None:
        """The catalog's entry for the source, with upstream's figures."""
        return entry_of(self.record.source.get("reference"))

    def drawing(self, name: str) -> str | None:
        """A drawing of the quantization, relative to the folder; None if it is not there."""
        return f"{IMAGES}/{name}" if f"{IMAGES}/{name}" in self.files else None

    def _call_arguments(self, evaluation: Evaluation) -> dict[str, str]:
        """Arguments of the snippet's call, as Python text: those of the evaluation, for the first example."""
        settings = GenerationSettings.of(self.architecture, {}, recorded=evaluation.protocol["generation"])
        arguments = settings.arguments(self.record.examples[0].prompt)
        return {name: literal(value) for name, value in arguments.items()}

    def _unscaled(self) -> dict[str, Any]:
        """What the plan of the unscaled format did: mean of amax / max|w|, and the layers kept by their rank.

        The ratio is None unless a range was searched for rounding to nearest.
        """
        plan = self.record.plans.get(Format.V1)
        decisions = plan.decisions if plan else ()
        if any(d.rounding in COMPENSATED for d in decisions):
            return {"label": Format.V1.label, "ratio": None, "kept": []}
        ratios = [d.amax / d.maximum for d in decisions if d.quantized and d.maximum and d.amax is not None]
        kept = [d.layer for d in decisions if not d.quantized and d.sensitivity is not None and "rank" in d.reason]
        return {"label": Format.V1.label, "ratio": fmean(ratios) if ratios else None, "kept": kept}

    def render(self) -> str:
        """The card as Markdown with its front matter."""
        text = environment().get_template("card.md.j2").render(card=self, **self._figures())
        return re.sub(r"\n{3,}", "\n\n", text)

    def _figures(self) -> dict[str, Any]:
        """The names of the template besides `card`."""
        names: dict[str, Any] = {
            "record": self.record.document,
            "source": self.record.source,
            "architecture": self.architecture,
            "formats": self.formats or list(DEFAULT_FORMATS),
            "fp8_formats": [f for f in self.formats or DEFAULT_FORMATS if f.numbers == (Number.FP8,)],
            "int8_formats": [f for f in self.formats if Number.INT8 in f.numbers],
        }
        if self.evaluation is None:
            return names
        return names | {
            "call_arguments": self._call_arguments(self.evaluation),
            "headings": headings(self.evaluation),
            "rows": table(self.evaluation, intervals=True),
            "confidence": f"{100 * CONFIDENCE:g} %",
            "floor": floor_label(self.evaluation.noise_floor) if self.evaluation.noise_floor else None,
            "protocol_rows": protocol_table(self.evaluation),
            "pair_table": pair_table(self.evaluation),
            "pairs": len(self.evaluation.variants[0].pairs),
            "unscaled": self._unscaled(),
            "drawings": {"sensitivity": SENSITIVITY, "sizes": SIZES, "weights": WEIGHTS, "arithmetic": ARITHMETIC},
            "metrics": SEEN,
            "multiplied": [
                f"{MULTIPLIED} {name}" for name in sorted({m.arithmetic for m in multiplied(self.evaluation)})
            ],
        }


def write_card(folder: Path) -> Path:
    """Render README.md of a published folder from its own metrics.json and hswq.json; returns its path.

    Raises:
        FormatError: it lacks them, or something in them.
    """
    try:
        text = Card.from_folder(folder).render()
    except _NOT_AS_WRITTEN as error:
        raise FormatError(f"{folder}/{RECORD} lacks what the card needs ({shown(error)})") from error
    write_atomically(folder / CARD, text.encode())
    return folder / CARD


def card_of(name: str) -> Card:
    """The card of a published folder, or of a model of the catalog.

    Raises:
        FormatError: it is a folder, but none that `publish` made.
        UnknownReferenceError: it is neither.
    """
    if Path(name).is_dir():
        return Card.from_folder(Path(name))
    entry = catalog().get(name.casefold())
    if entry is None:
        raise UnknownReferenceError(f"{name!r} is neither a folder here nor a name that `hswq-hub models` lists")
    return Card.from_catalog(entry)


def write_catalog_cards(folder: Path) -> list[Path]:
    """A card for each model of the catalog, in `folder`/NAME-hswq; returns their paths.

    One that shows figures, which `publish` made, is left alone.
    """
    written = []
    for entry in catalog().values():
        card = Card.from_catalog(entry)
        path = folder / card.record.repo / CARD
        if not (path.parent / METRICS).exists():
            write_atomically(path, card.render().encode())
            written.append(path)
    return written
