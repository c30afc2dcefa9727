"""The model card: typed data from a finished folder, put into one template."""

import json
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import fmean

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError

from hswq_runtime.architectures import ARCHITECTURES, Architecture
from hswq_runtime.errors import FormatError
from hswq_runtime.formats import Format

from .evaluate import ORIGINAL, Evaluation
from .files import write_atomically
from .plots import SENSITIVITY, SIZES, WEIGHTS
from .quantize import Decision
from .report import HEADINGS, comparisons, megabytes, table
from .sources.licence import Licence
from .sources.listing import NSFW_TAG
from .targets import RECORD

METRICS = "metrics.json"
CARD = "README.md"
IMAGES = "images"
_LICENCE_TEXTS = ("apache-2.0",)


@dataclass(frozen=True)
class Card:
    """All that the template needs; every figure comes from the folder's metrics.json and hswq.json."""

    record: dict
    evaluation: Evaluation
    architecture: Architecture
    files: list[str]
    """What is in the folder's `images`, relative to the folder."""

    @classmethod
    def from_folder(cls, folder: Path) -> "Card":
        """Read a folder that `publish` made.

        Raises:
            FormatError: it lacks hswq.json or metrics.json, or they are not what `publish` writes.
        """
        try:
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            evaluation = Evaluation.load(folder / METRICS)
            architecture = ARCHITECTURES[record["architecture"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FormatError(f"{folder} is no folder that `hswq-hub publish` made ({error})") from error
        files = sorted(f"{IMAGES}/{path.name}" for path in (folder / IMAGES).glob("*.png"))
        return cls(record, evaluation, architecture, files)

    @property
    def metadata(self) -> ModelCardData:
        """The YAML front matter."""
        source = self.record["source"]
        base = source.get("repo") or self.record["base"]
        return ModelCardData(
            model_name=self.record["repo"],
            license=self.record["licence"],
            license_name=self.record.get("licence_name"),
            license_link=self.record.get("licence_link"),
            base_model=[base] if base else None,
            base_model_relation="quantized" if base else None,
            library_name="diffusers",
            pipeline_tag="text-to-image",
            tags=[
                *("hswq", "fp8", "quantized", "comfyui", self.architecture.name),
                *([NSFW_TAG] if source.get("nsfw") else []),
            ],
            eval_results=[
                EvalResult(
                    task_type="text-to-image",
                    dataset_type="held-out-prompts",
                    dataset_name=f"{len(variant.pairs)} held-out prompt and seed pairs",
                    metric_type="ssim",
                    metric_name=f"SSIM against the original, {variant.label}",
                    metric_value=round(variant.ssim_mean, 4),
                )
                for variant in self.evaluation.variants
                if variant.label in {Format(name).label for name in self.record["files"]}
            ],
            widget=[
                {"text": example["prompt"], "output": {"url": example["image"]}} for example in self.record["examples"]
            ],
        )

    @property
    def images(self) -> list[str]:
        """Pictures side by side."""
        return [name for name in self.files if name.startswith(f"{IMAGES}/compare-")]

    @property
    def kept(self) -> list[Decision]:
        """The layers that are in full precision in the last of the published files."""
        rows = list(self.record["layers"].values())[-1]
        return [decision for decision in (Decision(**row) for row in rows) if not decision.quantized]

    def has_scaled_convolutions(self, format: Format) -> bool:
        """Whether the file of `format` has scales that stock ComfyUI does not read."""
        decisions = [Decision(**row) for row in self.record["layers"][format.value]]
        return format.scaled and any(d.quantized and d.kind == "Conv2d" and not d.unscaled for d in decisions)

    @property
    def verdict_lines(self) -> list[str]:
        """Which file is closer to the original, and if V1 is not, why: a sentence for each comparison."""
        template = _environment().get_template("verdict.j2")
        text = template.render(comparisons=comparisons(self.evaluation), unscaled=self._unscaled())
        return [line for line in text.splitlines() if line]

    @property
    def drawings(self) -> list[str]:
        """Those drawings of the quantization that the folder has, relative to it."""
        return [f"{IMAGES}/{name}" for name in (SIZES, SENSITIVITY, WEIGHTS) if f"{IMAGES}/{name}" in self.files]

    def _unscaled(self) -> dict:
        """What the plan of the unscaled format did: mean of amax / max|w|, and the layers kept by their rank.

        The ratio is None unless a range was searched for rounding to nearest.
        """
        decisions = [Decision(**row) for row in self.record["layers"].get(Format.V1.value, [])]
        if any(d.rounding == "gptq" for d in decisions):
            return {"label": Format.V1.label, "ratio": None, "kept": []}
        ratios = [d.amax / d.maximum for d in decisions if d.quantized and d.maximum]
        kept = [d.layer for d in decisions if not d.quantized and d.sensitivity is not None and "rank" in d.reason]
        return {"label": Format.V1.label, "ratio": fmean(ratios) if ratios else None, "kept": kept}

    def render(self) -> str:
        """The card as Markdown with its front matter."""
        return (
            _environment()
            .get_template("card.md.j2")
            .render(
                card=self,
                record=self.record,
                architecture=self.architecture,
                protocol=self.evaluation.protocol,
                headings=HEADINGS,
                rows=table(self.evaluation),
                pairs=len(self.evaluation.variants[0].pairs),
                formats=[format for format in Format if format.value in self.record["files"]],
                original=ORIGINAL,
                unscaled=self._unscaled(),
            )
        )


def write_card(folder: Path) -> Path:
    """Render README.md of a published folder from its own metrics.json and hswq.json; returns its path.

    Raises:
        FormatError: it lacks them, or something in them.
    """
    try:
        text = Card.from_folder(folder).render()
    except (KeyError, IndexError, TypeError, UndefinedError) as error:
        raise FormatError(f"{folder}/{RECORD} lacks what the card needs ({error})") from error
    write_atomically(folder / CARD, text.encode())
    return folder / CARD


def licence_text(licence: Licence | None, shipped: str | None = None) -> str | None:
    """The text that was shipped with the source, or one that ships with us; None if there is neither."""
    if shipped is not None:
        return shipped
    if licence is None or licence.id not in _LICENCE_TEXTS:
        return None
    return (files("hswq_hub") / "licences" / f"{licence.id}.txt").read_text(encoding="utf-8")


def _escaped(text: str) -> str:
    """A stranger's text as Markdown that shows it and nothing else."""
    return re.sub(r"([\\`*_{}\[\]<>()#|!&~])", r"\\\1", text)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("hswq_hub", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["megabytes"] = megabytes
    environment.filters["escaped"] = _escaped
    return environment
