"""The blind test: its components and their events. The answers are in the visitor's session and nowhere else."""

from contextlib import closing

import gradio as gr

from hswq_hub.evaluation.results import ORIGINAL
from hswq_runtime.formats import Format

from ..comparison.round import Round
from ..comparison.runs import Run
from ..comparison.worker import Stopped
from ..models.registry import Model
from . import view
from .blind_view import INTRO, script, stage
from .controller import Controller, user_message

_FAILED = "The next pair could not be made: too many are waiting. Begin again in a while."


class Blind:
    """Built inside a tab of the page.

    light: arguments of events that take no time. queue: of those that make pictures. seconds: how long a session lasts.
    """

    def __init__(self, controller: Controller, model: Model, *, light: dict, queue: dict, seconds: int):
        self.controller, self._light, self._queue = controller, light, queue
        self.stage = gr.HTML(_missing(model), js_on_load=script(), elem_id="blind")
        with gr.Column(elem_id="blind-setup") as self.setup:
            gr.HTML(INTRO)
            self.format = gr.Radio(
                _formats(model), value=_usual(model), label="Against the original", elem_id="against"
            )
            self.begin = gr.Button("Begin", variant="primary", size="lg", elem_id="blind-begin")
        self.stop = gr.Button("Stop", size="sm", visible=False, elem_id="blind-stop")
        self.round = gr.State(None, time_to_live=seconds)

    def wire(self, reference: gr.Dropdown) -> None:
        """The events; `reference` is where the model is chosen."""
        parts = [self.setup, self.stage, self.begin, self.stop, self.round]
        started = self.begin.click(self._begin, [reference, self.format], parts, **self._light)
        answered = self.stage.choose(self._choose, self.round, parts, **self._light)
        for before in (started, answered):
            before.then(
                self._prepare,
                self.round,
                parts,
                trigger_mode="multiple",
                show_progress="hidden",
                api_visibility="private",
                **self._queue,
            ).failure(self._failed, self.round, parts, **self._light)
        self.stop.click(self._stop, self.round, parts, **self._light)
        reference.change(self._other, [reference, self.round], [*parts, self.format], **self._light)

    def _begin(self, reference: str, label: str) -> dict:
        try:
            round = Round(self.controller.registry.model(reference).reference, label)
            round.request(self.controller.registry.model(reference))
        except Exception as error:
            return self._end(view.status(user_message(error), "error"))
        return self._show(round) | {self.round: round}

    def _choose(self, round: Round | None, chosen: gr.EventData) -> dict:
        """A picture was clicked, or its key was pressed. What a program sends here need not be of that form."""
        if round is None:
            return {self.stage: gr.skip()}
        number, picture = (getattr(chosen, name, None) for name in ("pair", "picture"))
        if type(number) is int and type(picture) is int:
            round.answer(number, picture - 1)
        return self._show(round)

    def _prepare(self, round: Round | None, visitor: gr.Request):
        """Make pairs until enough are ahead.

        What is to be seen comes once more at the end: what an answer that was given meanwhile shows may have overtaken
        a pair on its way to the browser.
        """
        try:
            while round is not None and round.wanted:
                model = self.controller.registry.model(round.model)
                with closing(self.controller.steps(model, round.request(model), visitor.session_hash)) as steps:
                    for step in steps:
                        if round.over:
                            return
                        if isinstance(step, Run):
                            made = round.add(step)
                            yield self._show(round) if round.shown is made else {self.stage: gr.skip()}
                        else:
                            yield {self.stage: gr.skip()}
            if round is not None and not round.over:
                yield self._show(round)
        except Stopped:
            return
        except Exception as error:
            yield self._end(view.status(user_message(error), "error"))

    def _show(self, round: Round) -> dict:
        if round.finished:
            return self._end(stage(round)) | {self.begin: "Start over"}
        return {self.setup: gr.update(visible=False), self.stage: stage(round), self.stop: gr.update(visible=True)}

    def _end(self, text: str) -> dict:
        return {self.setup: gr.update(visible=True), self.stage: text, self.stop: gr.update(visible=False)}

    def _stop(self, round: Round | None) -> dict:
        if round is not None:
            round.over = True
        return self._end("") | {self.round: None}

    def _failed(self, round: Round | None) -> dict:
        return self._stop(round) | {self.stage: view.status(_FAILED, "error")}

    def _other(self, reference: str, round: Round | None) -> dict:
        """Another model is shown."""
        try:
            model = self.controller.registry.model(reference)
        except Exception:  # the page says why
            return {self.stage: gr.skip()}
        formats = gr.update(choices=_formats(model), value=_usual(model))
        return self._stop(round) | {self.stage: _missing(model), self.format: formats}


def _formats(model: Model) -> list[str]:
    """What can be told from the original, the naive cast among it."""
    return [label for label in model.files if label != ORIGINAL]


def _usual(model: Model) -> str:
    formats = _formats(model)
    return Format.V2.label if Format.V2.label in formats else formats[-1]


def _missing(model: Model) -> str:
    return "" if ORIGINAL in model.files else view.status(model.missing)
