"""From a diffusion checkpoint to a measured, published HSWQ FP8 model. The command line is `hswq-hub`.

    from hswq_hub import publish, resolve
    published = publish(resolve("demo"))

What is listed here is public; every step of `publish` is a function of its own. Importing this package is cheap: torch
and diffusers are loaded when a name that needs them is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .calibration.calibrate import Calibration, calibrate
    from .cards.card import Card, write_card
    from .common.pieces import Pieces
    from .common.targets import TargetError
    from .evaluation.compare import compare
    from .evaluation.evaluate import evaluate
    from .evaluation.results import Evaluation
    from .hub.client import UploadError
    from .hub.settings import UploadSettings
    from .hub.upload import Uploaded, upload
    from .settings import CalibrationSettings, EvaluationSettings, PublishSettings, Recipe, SourceSettings, recipe
    from .sources.errors import SourceError
    from .sources.find import resolve
    from .sources.source import Source
    from .workflow.inspect import Inspection, inspect
    from .workflow.publish import Published, PublishPlan, publish
    from .workflow.quantize import quantize

__version__ = "0.1.0"

__all__ = [
    "Calibration",
    "CalibrationSettings",
    "Card",
    "Evaluation",
    "EvaluationSettings",
    "Inspection",
    "Pieces",
    "PublishPlan",
    "PublishSettings",
    "Published",
    "Recipe",
    "Source",
    "SourceError",
    "SourceSettings",
    "TargetError",
    "UploadError",
    "UploadSettings",
    "Uploaded",
    "calibrate",
    "compare",
    "evaluate",
    "inspect",
    "publish",
    "quantize",
    "recipe",
    "resolve",
    "upload",
    "write_card",
]

_MODULES = {
    "Calibration": "calibration.calibrate",
    "CalibrationSettings": "settings",
    "Card": "cards.card",
    "Evaluation": "evaluation.results",
    "EvaluationSettings": "settings",
    "Inspection": "workflow.inspect",
    "Pieces": "common.pieces",
    "PublishPlan": "workflow.publish",
    "PublishSettings": "settings",
    "Published": "workflow.publish",
    "Recipe": "settings",
    "Source": "sources.source",
    "SourceError": "sources.errors",
    "SourceSettings": "settings",
    "TargetError": "common.targets",
    "UploadError": "hub.client",
    "UploadSettings": "hub.settings",
    "Uploaded": "hub.upload",
    "calibrate": "calibration.calibrate",
    "compare": "evaluation.compare",
    "evaluate": "evaluation.evaluate",
    "inspect": "workflow.inspect",
    "publish": "workflow.publish",
    "quantize": "workflow.quantize",
    "recipe": "settings",
    "resolve": "sources.find",
    "upload": "hub.upload",
    "write_card": "cards.card",
}
"""The module of each public name; it is imported when the name is first used."""

if not TYPE_CHECKING:  # a type checker reads the imports above, and reports other names

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
