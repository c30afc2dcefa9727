"""The page: its components, and the functions that their events call."""

import gradio as gr

from hswq_runtime.errors import HSWQError
from hswq_runtime.formats import Format

from ..comparison.runs import KEPT, Run
from ..comparison.worker import Stopped
from ..models.registry import Model
from ..request import (
    FIRST_SEED,
    GUIDANCE,
    PROMPT_LENGTH,
    SEED,
    SIZE_STEP,
    STEPS,
    Request,
    default_request,
    validated_request,
)
from . import view
from .api import add_api
from .blind import Blind
from .controller import Controller, user_message
from .links import link, request_from_query
from .view import Tile

TITLE = "HSWQ: what quantization did to the picture"
QUEUE = {"concurrency_limit": 1, "concurrency_id": "worker"}
"""Pictures are made one at a time; everybody else waits in the queue."""
_LIGHT = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_SESSION_SECONDS = 3600
_RANDOM_SEED = f"() => Math.floor(Math.random() * {SEED})"
_REMEMBER = "(query) => { if (query) window.history.replaceState(null, '', query); }"
_EMPTY = "Write a prompt and press Compare: every variant starts from the same noise."


class Page:
    """Components and their events, built inside a `gr.Blocks`."""

    def __init__(self, controller: Controller):
        self.controller = controller
        self._cancelled: set[str] = set()
        self.start = controller.registry.model()
        gr.HTML(
            '<div class="masthead"><h1>HSWQ</h1><p>What quantization did to the picture: same prompt, same '
            "noise, every variant.</p></div>"
        )
        with gr.Tab("Compare"), gr.Row(equal_height=False):
            with gr.Column(scale=7, min_width=320):
                self._hero()
            with gr.Column(scale=4, min_width=300, elem_classes="controls"):
                self._controls()
        with gr.Tab("Blind test"):
            self.blind = Blind(controller, self.start, light=_LIGHT, queue=QUEUE, seconds=_SESSION_SECONDS)
        with gr.Tab("Layers") as layers_tab:
            self.format = gr.Radio([f.label for f in Format], value=Format.V2.label, show_label=False, container=False)
            self.layers = gr.HTML()
        with gr.Tab("About"):
            self.about = gr.Markdown(self.start.about, elem_classes="about")
        self.runs = gr.State([], time_to_live=_SESSION_SECONDS)
        self.shown = gr.State(0, time_to_live=_SESSION_SECONDS)
        # Hidden, not absent: their changes are events of the browser.
        self.linked = gr.Number(0, visible="hidden")
        self.query = gr.Textbox(visible="hidden")
        self._wire(layers_tab)
        self.blind.wire(self.model)
        add_api(controller, **QUEUE)

    def _hero(self) -> None:
        limits = self.start.limits
        labels = limits.all
        with gr.Row(elem_classes="sides", equal_height=True):
            self.left = gr.Dropdown(
                list(labels), value=labels[0], label="Left", min_width=130, container=False, elem_id="left"
            )
            gr.HTML('<span class="against">against</span>', min_width=60)
            self.right = gr.Dropdown(
                list(labels), value=limits.variants[-1], label="Right", min_width=130, container=False, elem_id="right"
            )
        with gr.Tabs(elem_classes="views"):
            with gr.Tab("Slider"):
                self.slider = gr.ImageSlider(
                    type="numpy",
                    format="png",  # WebP, its default, would show its own losses
                    interactive=False,
                    show_label=False,
                    container=False,
                    max_height=760,
                    buttons=["fullscreen"],
                    elem_id="hero",
                )
            with gr.Tab("Side by side"):
                self.grid = gr.Gallery(
                    format="png",
                    columns=2,
                    height="auto",
                    object_fit="contain",
                    show_label=False,
                    interactive=False,
                    container=False,
                    buttons=["download", "fullscreen"],
                    elem_id="grid",
                )
            with gr.Tab("Difference"):
                self.difference = gr.Image(
                    format="png",
                    interactive=False,
                    show_label=False,
                    container=False,
                    buttons=["fullscreen"],
                    elem_id="difference",
                )
                self.factor = gr.HTML()
        self.strip = gr.HTML(view.strip([Tile(label, caption="") for label in labels]), elem_id="strip")
        self.measures = gr.HTML(f'<p class="fine">{_EMPTY}</p>', elem_id="measures")
        self.gallery = gr.Gallery(
            format="png",
            columns=KEPT,
            fit_columns=False,
            height="auto",
            object_fit="cover",
            allow_preview=False,
            interactive=False,
            label="Your comparisons",
            buttons=[],
            visible=False,
            elem_id="runs",
        )

    def _controls(self) -> None:
        controller, model = self.controller, self.start
        limits = model.limits
        with gr.Group():
            self.model = gr.Dropdown(
                list(controller.registry.references),
                value=model.reference,
                label="Model",
                info="or owner/repo on the Hub, and Enter" if controller.registry.any_repo else None,
                allow_custom_value=controller.registry.any_repo,
                visible=controller.registry.any_repo or len(controller.registry.references) > 1,
            )
            self.prompt = gr.Textbox(
                label="Prompt",
                value=model.examples[0] if model.examples else "",
                lines=3,
                max_lines=6,
                max_length=PROMPT_LENGTH,
                submit_btn=False,
                autofocus=False,
                elem_id="prompt",
            )
            self.examples = gr.Dataset(
                components=[gr.Textbox(visible=False)],
                samples=[[prompt] for prompt in model.examples],
                label="Examples",
                layout="gallery",
                elem_id="examples",
            )
        self.variants = gr.CheckboxGroup(
            list(limits.all),
            value=list(limits.variants),
            label="Variants",
            info="In FP8, in INT8: as ComfyUI computes the file on a GPU with such arithmetic.",
            elem_id="variants",
        )
        with gr.Row(elem_classes="seed"):
            self.seed = gr.Number(FIRST_SEED, label="Seed", precision=0, elem_id="seed", min_width=120)
            self.random = gr.Button("Another seed", size="md", min_width=120, elem_id="random")
        with gr.Accordion("More settings", open=False):
            self.steps = gr.Slider(1, STEPS, value=limits.steps, step=1, label="Steps", elem_id="steps")
            self.guidance = gr.Slider(0, GUIDANCE, value=limits.guidance, step=0.5, label="Guidance")
            self.size = gr.Slider(
                limits.smallest, limits.largest, value=limits.size, step=SIZE_STEP, label="Size, pixels a side"
            )
            self.negative = gr.Textbox(
                label="Negative prompt", info="counts where guidance is above 0", max_length=PROMPT_LENGTH
            )
            self.lora = gr.Textbox(
                label="LoRA, on every variant",
                info="owner/repo/file.safetensors on the Hub" + (", or a path" if controller.worker.local else ""),
                max_length=PROMPT_LENGTH,
                elem_id="lora",
            )
        with gr.Row():
            self.compare = gr.Button("Compare", variant="primary", size="lg", scale=3, elem_id="compare")
            self.cancel = gr.Button("Cancel", size="lg", scale=1, min_width=90, interactive=False, elem_id="cancel")
        self.status = gr.HTML(view.status(model.missing), elem_id="status", min_height=44)

    def _wire(self, layers_tab: gr.Tab) -> None:
        fields = [self.prompt, self.negative, self.seed, self.steps, self.guidance, self.size, self.variants, self.lora]
        model_parts = [*fields, self.examples, self.left, self.right, self.about, self.layers, self.status]
        result = [self.slider, self.difference, self.factor, self.grid, self.strip, self.measures]
        result += [self.left, self.right, self.gallery, self.runs, self.shown, self.query]
        buttons = [self.status, self.compare, self.cancel]
        demo = gr.context.Context.root_block

        triggers = [self.compare.click, self.prompt.submit, self.linked.change]
        making = gr.on(triggers, self._begin, None, buttons, **_LIGHT).then(
            self._make,
            [self.model, *fields, self.runs],
            [*result, *buttons],
            show_progress="minimal",
            show_progress_on=self.status,
            api_visibility="private",
            **QUEUE,
        )
        making.failure(self._failed, None, buttons, **_LIGHT)
        self.cancel.click(self._cancel, None, buttons, cancels=[making], **_LIGHT)
        demo.unload(self._leave)
        self.query.change(None, self.query, None, js=_REMEMBER, **_LIGHT)
        for side in (self.left, self.right):
            outputs = [self.slider, self.difference, self.factor]
            side.input(self._sides, [self.runs, self.shown, self.left, self.right], outputs, **_LIGHT)
        self.gallery.select(self._select, self.runs, result, **_LIGHT)
        self.random.click(None, None, self.seed, js=_RANDOM_SEED, api_visibility="private")
        self.examples.click(lambda sample: sample[0], self.examples, self.prompt, **_LIGHT)
        gr.on(
            [layers_tab.select, self.format.input],
            self._layers,
            [self.model, self.format],
            [self.layers],
            api_visibility="private",
            concurrency_limit=4,
        )
        self.model.input(self._choose, self.model, model_parts, api_visibility="private", concurrency_limit=4)
        demo.load(self._arrive, None, [self.model, *model_parts, self.linked], **_LIGHT)
        demo.load(self._first, None, result, concurrency_limit=None, show_progress="hidden", api_visibility="private")

    # Event handlers: each returns a dictionary of components and their new values.

    def _begin(self, visitor: gr.Request) -> dict:
        """At once, before the queue: a request can be cancelled while it waits."""
        self._cancelled.discard(visitor.session_hash)
        return {
            self.compare: gr.update(interactive=False),
            self.cancel: gr.update(interactive=True),
            self.status: view.status("Waiting for its turn"),
        }

    def _make(
        self, reference, prompt, negative, seed, steps, guidance, size, variants, lora, runs, visitor: gr.Request
    ):
        try:
            model = self.controller.registry.model(reference)
            request = validated_request(model.limits, prompt, negative, seed, steps, guidance, size, variants, lora)
            for step in self.controller.steps(model, request, visitor.session_hash):
                if isinstance(step, Run):
                    runs = [step, *runs][:KEPT]
                    yield self._show(runs, 0) | self._idle(step.remark or model.missing)
                else:
                    yield {self.status: view.status(step.text), self.strip: view.strip(step.tiles)}
        except Stopped:
            yield self._idle("Stopped.")
        except Exception as error:
            yield self._idle(user_message(error), "error")

    def _idle(self, text: str, kind: str = "info") -> dict:
        return {
            self.compare: gr.update(interactive=True),
            self.cancel: gr.update(interactive=False),
            self.status: view.status(text, kind),
        }

    def _failed(self, visitor: gr.Request) -> dict:
        """Gradio itself ended it: it was cancelled, the queue is full, or a component has no such value."""
        if visitor.session_hash in self._cancelled:
            return self._idle("Stopped.")
        return self._idle("The request was refused: too many are waiting, or a field is out of its bounds.", "error")

    def _cancel(self, visitor: gr.Request) -> dict:
        self._cancelled.add(visitor.session_hash)
        self.controller.stop(visitor.session_hash)
        return self._idle("Stopped.")

    def _leave(self, visitor: gr.Request) -> None:
        self._cancelled.discard(visitor.session_hash)
        self.controller.stop(visitor.session_hash)

    def _show(self, runs: list[Run], index: int) -> dict:
        run = runs[index]
        labels, query = list(run.request.variants), link(run.model, run.request)
        left, right = labels[0], labels[-1]
        return self._pictures(run, left, right) | {
            self.left: gr.update(choices=labels, value=left),
            self.right: gr.update(choices=labels, value=right),
            self.grid: [(run.picture(label), label) for label in labels],
            self.strip: view.finished(run),
            self.measures: view.measures(run, query),
            self.gallery: gr.update(value=[_thumbnail(run) for run in runs], visible=True),
            self.runs: runs,
            self.shown: index,
            self.query: query,
        }

    def _pictures(self, run: Run, left: str, right: str) -> dict:
        difference, factor = run.difference(left, right)
        return {
            self.slider: (run.picture(left), run.picture(right)),
            self.difference: difference,
            self.factor: view.amplified(left, right, factor),
        }

    def _sides(self, runs: list[Run], index: int, left: str, right: str) -> dict:
        if not runs or not {left, right} <= runs[index].pictures.keys():
            return {self.slider: gr.skip()}
        return self._pictures(runs[index], left, right)

    def _select(self, runs: list[Run], chosen: gr.SelectData) -> dict:
        return self._show(runs, chosen.index)

    def _first(self) -> dict:
        run = self.controller.first()
        return {self.query: gr.skip()} if run is None else self._show([run], 0) | {self.query: gr.skip()}

    def _layers(self, reference: str, label: str) -> dict:
        try:
            model = self.controller.registry.model(reference)
            plans = self.controller.worker.call(model.plans)
            plan = next((plan for version, plan in plans.items() if version.label == label), None)
            text = view.layers(plan) if plan else view.status(f"There is no {label} file of this model.")
        except HSWQError as error:
            text = view.status(user_message(error), "error")
        return {self.layers: text}

    def _choose(self, reference: str) -> dict:
        try:
            return self._model(self.controller.registry.model(reference), None)
        except Exception as error:
            return {self.status: view.status(user_message(error), "error")}

    def _arrive(self, visitor: gr.Request) -> dict:
        """Take the fields from the link that led here, and begin if it asks for a comparison."""
        query = dict(visitor.query_params)
        try:
            model = self.controller.registry.model(query.get("model"))
            request = request_from_query(query, model.limits)
        except HSWQError as error:
            return {self.status: view.status(f"The link cannot be followed: {user_message(error)}", "error")}
        if request is None:
            return {self.linked: 0}
        return self._model(model, request) | {self.model: model.reference, self.linked: 1}

    def _model(self, model: Model, request: Request | None) -> dict:
        """All that depends on the model, with the fields as `request` has them or at their defaults."""
        limits, labels = model.limits, list(model.limits.all)
        fields = request or default_request(limits, model.examples[0])
        return {
            self.prompt: fields.prompt,
            self.negative: fields.negative,
            self.seed: fields.seed,
            self.steps: fields.steps,
            self.guidance: fields.guidance,
            self.size: gr.update(minimum=limits.smallest, maximum=limits.largest, value=fields.size),
            self.variants: gr.update(choices=labels, value=list(fields.variants)),
            self.lora: fields.lora,
            self.examples: gr.Dataset(samples=[[prompt] for prompt in model.examples]),
            self.left: gr.update(choices=labels, value=labels[0]),
            self.right: gr.update(choices=labels, value=limits.variants[-1]),
            self.about: model.about,
            self.layers: "",
            self.status: view.status(model.missing),
        }


def _thumbnail(run: Run) -> tuple:
    return run.picture(run.request.variants[-1]), f"seed {run.request.seed}"
