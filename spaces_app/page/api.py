"""The endpoint for programs. It takes text and numbers, and returns figures and pictures; no files."""

import gradio as gr

from ..request import FIRST_SEED, validated_request
from . import view
from .controller import Controller, user_message
from .links import link


def add_api(controller: Controller, **queue) -> None:
    """Add `/compare` to the page that is being built."""

    def compare(
        prompt: str,
        seed: int = FIRST_SEED,
        steps: int | None = None,
        guidance: float | None = None,
        size: int | None = None,
        negative: str = "",
        variants: list[str] | None = None,
        model: str | None = None,
        lora: str = "",
    ) -> dict:
        """Pictures of one prompt from one seed, by each variant, and how far each is from the first.

        What is left out has the model's default. `lora`: owner/repo/file.safetensors on the Hub.
        """
        try:
            shown = controller.registry.model(model)
            limits = shown.limits
            request = validated_request(
                limits,
                prompt,
                negative,
                seed,
                limits.steps if steps is None else steps,
                limits.guidance if guidance is None else guidance,
                limits.size if size is None else size,
                limits.variants if variants is None else variants,
                lora,
            )
            return view.as_json(controller.run(shown, request), link(shown.reference, request))
        except Exception as error:
            raise gr.Error(user_message(error), print_exception=False) from error

    gr.api(compare, api_name="compare", **queue)
