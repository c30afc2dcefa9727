"""The page: paste a link, see what it is, start a job, follow it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gradio as gr

from hswq_hub.jobs.settings import JobSettings
from hswq_hub.sources.http.tokens import Tokens, on_behalf_of
from hswq_runtime.errors import HSWQError
from hswq_runtime.hub_errors import Kind, refusal_of

from ..page.controller import user_message
from . import view
from .login import LONGEST_LINK, REMARKS
from .look import FORMATS, Look, gpu_of, look_at, outlook, repo_of
from .order import HOURS, Order, OrderError, jobs_of, offers, stop, watch
from .visitor import Door, Visitor

TITLE = "HSWQ my repo"
_SHORT = {"show_progress": "hidden", "api_visibility": "private"}
_WORK = {"show_progress": "minimal", "api_visibility": "private", "concurrency_limit": 4}
_PUBLIC, _PRIVATE = "Public", "Private"
_SECONDS, _WATCHERS = 6, 12
"""Between two looks at a job; how many look at once."""
_START, _STARTED = "Start the job", "The job was started"
_SIGNED_OUT = "Sign in to start a job; what it costs is shown then."
_AGAIN = "look at the model again, and choose a machine"


class SignedOutError(HSWQError):
    """What was asked for takes somebody who is signed in."""


class MyRepo:
    """Components and their events, built inside a `gr.Blocks`. package: what jobs install; None: this version."""

    def __init__(self, door: Door, package: str | None = None):
        self.door, self.package = door, package
        gr.HTML(
            '<div class="masthead"><h1>HSWQ my repo</h1><p>A checkpoint from Civitai or Hugging Face, quantized and '
            "measured against its original, in a repo of yours.</p></div>"
        )
        with gr.Column(elem_classes="my-repo"):
            self.account = gr.HTML(elem_id="account")
            with gr.Row(equal_height=True):
                self.link = gr.Textbox(
                    "",
                    label="Link to the model",
                    placeholder="its address, or owner/name",
                    max_length=LONGEST_LINK,
                    scale=5,
                    elem_id="link",
                )
                self.look = gr.Button("Look", scale=1, min_width=110, elem_id="look")
            self.said = gr.HTML(elem_id="said")
            self.facts = gr.HTML(elem_id="facts")
            with gr.Group(visible=False) as self.choices:
                self._choices()
            self.price = gr.HTML(elem_id="price")
            self.start = gr.Button(_START, variant="primary", size="lg", visible=False, elem_id="start")
            self.jobs = gr.Dropdown([], label="Your jobs", visible=False, elem_id="jobs")
            self.watched = gr.HTML(elem_id="watched")
            self.stop = gr.Button("Stop the job", visible=False, elem_id="stop")
            self.progress = gr.HTML(elem_id="progress")
        self.looked, self.job = gr.State(None), gr.State("")
        self.clock = gr.Timer(_SECONDS, active=False)
        self._wire()

    def _choices(self) -> None:
        self.format = gr.Radio(list(FORMATS), value=next(iter(FORMATS)), label="Files", elem_id="format")
        with gr.Row():
            self.repo = gr.Textbox("", label="Repo", max_length=LONGEST_LINK, scale=3, min_width=260, elem_id="repo")
            self.privacy = gr.Radio([_PUBLIC, _PRIVATE], value=_PUBLIC, label="Who may see it", scale=2, min_width=210)
        with gr.Row():
            self.machine = gr.Dropdown([], label="Machine", min_width=250, elem_id="machine")
            hours = [(f"{hours} h", hours) for hours in HOURS]
            self.hours = gr.Dropdown(hours, value=HOURS[1], label="Stopped after", min_width=150, elem_id="hours")
        self.licence = gr.Textbox("", label="Licence (an id of the Hub's)", max_length=LONGEST_LINK, visible=False)
        self.permitted = gr.Checkbox(label="Its creator allowed it to me", visible=False, elem_id="permitted")

    def _wire(self) -> None:
        demo = gr.context.Context.root_block
        choices = [self.choices, self.repo, self.privacy, self.machine, self.licence, self.permitted, self.start]
        looked = [self.account, self.said, self.facts, *choices, self.price, self.looked]
        asked = [self.looked, self.format, self.machine, self.hours]
        order = [*asked, self.repo, self.privacy, self.licence, self.permitted]
        followed = [self.account, self.said, self.watched, self.progress, self.jobs, self.job, self.clock, self.start]
        followed.append(self.stop)

        arrived = demo.load(self._arrive, None, [self.account, self.said, self.link, self.jobs], **_SHORT)
        look = gr.on([self.look.click, self.link.submit], self._clear, None, looked, **_SHORT)
        for begun in (look, arrived):
            found = begun.then(self._look, self.link, looked, **_WORK)
            found.then(self._price, asked, [self.account, self.price], **_WORK)
        self.link.input(self._clear, None, looked, **_SHORT)
        for field in (self.format, self.machine, self.hours):
            field.input(self._price, asked, [self.account, self.price], **_WORK)
        self.start.click(self._start, order, followed, **_WORK)
        self.stop.click(self._stop, self.job, followed, **_WORK)
        chosen = self.jobs.input(lambda id: id, self.jobs, self.job, **_SHORT)
        for trigger in (chosen.then, self.clock.tick):
            trigger(self._watch, self.job, followed, concurrency_limit=_WATCHERS, **_SHORT)

    # Event handlers: each returns a dictionary of components and their new values.

    @contextmanager
    def _speaking(self, request: gr.Request) -> Iterator[Visitor | None]:
        """Within the block whoever asks speaks, with his tokens; who is not signed in with none at all."""
        visitor = self.door.visitor(request.request)
        tokens = Tokens() if visitor is None else visitor.tokens
        try:
            with on_behalf_of(tokens):
                yield visitor
        except HSWQError as error:
            refusal = refusal_of(error)
            if visitor is not None and refusal is not None and refusal.kind is Kind.TOKEN:
                self.door.forget(request.request)
                raise SignedOutError("your sign-in is not accepted any more; sign in again") from None
            raise type(error)(tokens.hidden_in(str(error))) from None  # a server may have said them back

    @contextmanager
    def _signed_in(self, request: gr.Request) -> Iterator[Visitor]:
        """The same for what only somebody can do who is signed in."""
        with self._speaking(request) as visitor:
            if visitor is None:
                raise SignedOutError("your sign-in has ended; sign in again")
            yield visitor

    def _answer(self, request: gr.Request, where: gr.HTML, act: Callable[[], dict], otherwise: dict) -> dict:
        """What `act` says; an error as a sentence in `where`, with `otherwise`."""
        try:
            return act()
        except Exception as error:
            found = {where: view.note(view.without_commands(user_message(error)), "error")}
            if isinstance(error, SignedOutError):
                found[self.account] = view.account(self.door.visitor(request.request), self.door.address)
            return otherwise | found

    def _arrive(self, request: gr.Request) -> dict:
        visitor = self.door.visitor(request.request)
        link = str(request.query_params.get("link", ""))[:LONGEST_LINK]
        remark = REMARKS.get(str(request.query_params.get("note", "")), "")
        found = {self.account: view.account(visitor, self.door.address, link), self.link: link}
        found[self.said] = view.note(remark, "error")
        return found if visitor is None else found | self._jobs(request)

    def _jobs(self, request: gr.Request, current: str | None = None) -> dict:
        """The visitor's jobs to choose from. current: the one that is shown."""

        def listed() -> dict:
            with self._signed_in(request) as visitor:
                choices = view.choices(jobs_of(visitor.name))
            return {self.jobs: gr.update(choices=choices, value=current, visible=bool(choices))}

        return self._answer(request, self.said, listed, {})

    def _clear(self) -> dict:
        """What was found behind another link, or is to be looked at again."""
        hidden = gr.update(visible=False)
        return {self.facts: "", self.price: "", self.choices: hidden, self.start: hidden, self.looked: None}

    def _look(self, link: str, request: gr.Request) -> dict:
        link = link.strip()[:LONGEST_LINK]
        return self._answer(request, self.said, lambda: self._found(link, request), {}) if link else {self.facts: ""}

    def _found(self, link: str, request: gr.Request) -> dict:
        with self._speaking(request) as visitor:
            look = look_at(link, whole=visitor is not None)
            found = {self.account: view.account(visitor, self.door.address, link), self.facts: view.facts(look)}
            found |= {self.looked: look, self.said: view.note("" if visitor else _SIGNED_OUT)}
            if visitor is None:
                return found
            machines = offers(look.need, HOURS[1], visitor.name)
        default = JobSettings().flavor if JobSettings().flavor in machines else next(iter(machines), None)
        labels = [(view.machine(offer), name) for name, offer in machines.items()]
        return found | {
            self.choices: gr.update(visible=True),
            self.start: gr.update(value=_START, interactive=True, visible=True),
            self.repo: repo_of(visitor.name, look.name),
            self.privacy: _PRIVATE if look.closed else _PUBLIC,
            self.machine: gr.update(choices=labels, value=default),
            self.licence: gr.update(visible=look.licence is None, value=""),
            self.permitted: gr.update(visible=bool(look.objections), value=False),
        }

    def _price(self, look: Look | None, format: str, machine: str | None, hours: int, request: gr.Request) -> dict:
        if look is None or machine is None:
            return {self.price: ""}

        def priced() -> dict:
            with self._signed_in(request) as visitor:
                offer = offers(look.need, hours, visitor.name).get(machine)
                if offer is None:
                    raise OrderError(_AGAIN)
                gpu = gpu_of(offer.hardware)
                if gpu is None:
                    return {self.price: view.price(offer, None, "How long this machine takes is not known.")}
                try:
                    found, why = outlook(look.reference, FORMATS[format], gpu), ""
                except HSWQError as error:
                    found, why = None, view.without_commands(user_message(error))
                return {self.price: view.price(offer, found, why)}

        return self._answer(request, self.price, priced, {})

    def _start(
        self,
        look: Look | None,
        format: str,
        machine: str | None,
        hours: int,
        repo: str,
        privacy: str,
        licence: str,
        permitted: bool,
        request: gr.Request,
    ) -> dict:
        def started() -> dict:
            with self._signed_in(request) as visitor:
                if look is None or machine is None:
                    raise OrderError(_AGAIN)
                order = Order(
                    look.reference,
                    FORMATS[format],
                    repo.strip()[:LONGEST_LINK],
                    privacy == _PRIVATE,
                    machine,
                    hours,
                    permitted,
                    licence.strip()[:LONGEST_LINK],
                    self.package,
                )
                job = order.start(visitor, look)
            begun = {self.said: "", self.start: gr.update(value=_STARTED, interactive=False), self.job: job.id}
            return self._watch(job.id, request) | begun | self._jobs(request, job.id)

        return self._answer(request, self.said, started, {})

    def _stop(self, id: str, request: gr.Request) -> dict:
        def stopped() -> dict:
            with self._signed_in(request) as visitor:
                stop(id, visitor.name)
            return self._watch(id, request)

        return self._answer(request, self.watched, stopped, {})

    def _watch(self, id: str, request: gr.Request) -> dict:
        if not id:
            return {self.clock: gr.Timer(active=False)}

        def look() -> dict:
            with self._signed_in(request) as visitor:
                watched = watch(id, visitor.name)
            found = {self.watched: "", self.progress: view.progress(watched)}
            found |= {self.clock: gr.Timer(active=not watched.ended), self.stop: gr.update(visible=not watched.ended)}
            if not watched.ended:
                return found
            again = {} if watched.succeeded else {self.start: gr.update(value=_START, interactive=True)}
            return found | again | self._jobs(request, id)

        # What the Hub fails to say now it may say in some seconds: the clock goes on, but for who is signed out.
        signed_out = self.door.visitor(request.request) is None
        return self._answer(request, self.watched, look, {self.clock: gr.Timer(active=not signed_out)})
