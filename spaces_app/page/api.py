"""The endpoint for programs and, as a tool, for assistants: text and numbers in, figures and pictures out; no files."""

import gradio as gr
from gradio.context import LocalContext

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
        pictures: bool = True,
    ) -> dict:
        """Make one picture by each variant of a quantized diffusion model, and measure how far each is from the first.

        All variants have the same prompt and start from the same noise. What is left out has the model's default.

        Args:
            prompt: What the pictures show, 600 characters at most.
            seed: Of the noise, from 0 to 4294967295; the same seed gives the same pictures.
            steps: Denoising steps, from 1 to 60; more take longer.
            guidance: Guidance scale, from 0 to 20; 0 for models that were distilled to need none.
            size: Pixels a side, a multiple of 16.
            negative: What the pictures do not show; only for models that are guided.
            variants: Two or more of those that the page offers, such as "original", "naive FP8", "V1" and "V2".
            model: One of the models that the page offers, as it is named there; the first, if left out.
            lora: A LoRA that is put on every variant: owner/repo/file.safetensors on the Hugging Face Hub.
            pictures: Whether the answer has each picture, as a PNG data URL; false if only the figures are wanted.

        Returns:
            The variant measured against, and of each SSIM (1 is equal), PSNR, error of the latents, seconds and bytes.
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
            run = controller.run(shown, request, _left)
            return view.as_json(run, link(shown.reference, request), pictures=pictures)
        except Exception as error:
            raise gr.Error(user_message(error), print_exception=False) from error

    gr.api(compare, api_name="compare", **queue)


def _left() -> bool:
    """Whether whoever asked has closed the connection. Gradio's queue notes it, and ends only generators for it."""
    event, page = LocalContext.event_id.get(None), LocalContext.blocks.get(None)
    jobs = page._queue.active_jobs if page is not None else []
    return any(one._id == event and not one.alive for job in jobs for one in job or ())
