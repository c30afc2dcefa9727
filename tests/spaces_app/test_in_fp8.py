"""A file on the page as ComfyUI computes it on a GPU with FP8 arithmetic."""

from dataclasses import asdict

import pytest

from hswq_hub.workflow.publish import NAIVE
from spaces_app.comparison.worker import VariantDone, Worker
from spaces_app.models.registry import MULTIPLIED, ModelRegistry
from spaces_app.request import default_request, validated_request

IN_FP8, *_ = MULTIPLIED

pytestmark = pytest.mark.usefixtures("shared_home")


def test_it_is_asked_for_by_name_and_leaves_the_exact_products_as_they_were():
    model, worker = ModelRegistry().model(), Worker(local=True)
    usual = default_request(model.limits, "a large red house at the left on green hills by day")
    assert not any(label.endswith(IN_FP8) for label in usual.variants)
    fields = asdict(usual) | {"steps": 2, "variants": ["original", NAIVE, NAIVE + IN_FP8]}
    request = validated_request(model.limits, **fields)
    assert request.variants == ("original", NAIVE, NAIVE + IN_FP8)

    def errors() -> dict[str, float]:
        events = worker.run(model, request)
        return {event.label: event.figures.latent_mse for event in events if isinstance(event, VariantDone)}

    first = errors()
    assert first["original"] == 0 and first[NAIVE + IN_FP8] > 2 * first[NAIVE] > 0
    assert errors() == first
