"""The page: paste a link, see what it is, start a job, follow it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gradio as gr

from hswq_hub.hub.client import AccountError
from hswq_hub.jobs.settings import JobSettings
from hswq_hub.sources.http.tokens import Tokens, on_behalf_of
from hswq_runtime.errors import HSWQError

from ..page.controller import user_message
from . import view
from .login import REMARKS
from .look import FORMATS, Look, gpu_of, look_at, outlook, repo_of
from .order import HOURS, Order, OrderError, mine, offers, repo_in, watch
from .visitor import Door, Visitor

TITLE = "HSWQ my repo"
_SHORT = {"show_progress": "hidden", "api_visibility": "private"}
_WORK = {"show_progress": "minimal", "api_visibility": "private", "concurrency_limit": 4}
_PUBLIC, _PRIVATE = "Public", "Private"
_SECONDS, _LONGEST = 6, 300
"""Between two looks at a job; characters of a link."""
_WATCHERS = 12
_SESSION_SECONDS = 3600
_START, _STARTED = "Start the job", "The job was started"
_SIGNED_OUT = "Sign in to start a job; what it costs is shown then."


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
                    placeholder="https://civitai.com/models/…, or owner/name",
                    max_length=_LONGEST,
                    scale=5,
                    elem_id="link",
                )
                self.look = gr.Button("Look", scale=1, min_width=110, elem_id="look")
            with gr.Accordion("A Civitai token, for models there", open=False):
                self.civitai = gr.Textbox(
                    "",
                    show_label=False,
                    type="password",
                    max_length=_LONGEST,
                    info="Made at civitai.com/user/account. It goes to Civitai and into your job's secrets, and is not "
                    "kept here.",
                    elem_id="civitai",
                )
            self.said = gr.HTML(elem_id="said")
            self.facts = gr.HTML(elem_id="facts")
            with gr.Group(visible=False) as self.choices:
                self.format = gr.Radio(list(FORMATS), value=next(iter(FORMATS)), label="Files", elem_id="format")
                with gr.Row():
                    self.repo = gr.Textbox("", label="Repo", max_length=_LONGEST, scale=3, elem_id="repo")
                    self.privacy = gr.Radio([_PUBLIC, _PRIVATE], value=_PUBLIC, label="Who may see it", scale=2)
                with gr.Row():
                    self.machine = gr.Dropdown([], label="Machine", elem_id="machine")
                    self.hours = gr.Dropdown(
                        [(f"{hours} h", hours) for hours in HOURS],
                        value=HOURS[1],
                        label="Stopped after",
                        elem_id="hours",
                    )
                self.licence = gr.Textbox("", label="Licence (an id of the Hub's)", max_length=_LONGEST, visible=False)
                self.permitted = gr.Checkbox(label="Its creator allowed it to me", visible=False, elem_id="permitted")
            self.price = gr.HTML(elem_id="price")
            self.start = gr.Button(_START, variant="primary", size="lg", visible=False, elem_id="start")
            self.jobs = gr.Dropdown([], label="Your jobs", visible=False, elem_id="jobs")
            self.progress = gr.HTML(elem_id="progress")
        self.looked = gr.State(None, time_to_live=_SESSION_SECONDS)
        self.job = gr.State("", time_to_live=_SESSION_SECONDS)
        self.clock = gr.Timer(_SECONDS, active=False)
        self._wire()

    def _wire(self) -> None:
        demo = gr.context.Context.root_block
        choices = [self.choices, self.repo, self.privacy, self.machine, self.licence, self.permitted, self.start]
        looked = [self.account, self.said, self.facts, *choices, self.price, self.looked]
        asked = [self.looked, self.format, self.machine, self.hours]
        order = [*asked, self.repo, self.privacy, self.licence, self.permitted, self.civitai]
        followed = [self.account, self.said, self.progress, self.jobs, self.job, self.clock, self.start]

        arrived = demo.load(self._arrive, None, [self.account, self.said, self.link, self.jobs], **_SHORT)
        look = gr.on([self.look.click, self.link.submit], self._look, [self.link, self.civitai], looked, **_WORK)
        arrived = arrived.then(self._look, [self.link, self.civitai], looked, **_WORK)
        for begun in (look, arrived):
            begun.then(self._price, [*asked, self.civitai], self.price, **_WORK)
        for field in (self.format, self.machine, self.hours):
            field.input(self._price, [*asked, self.civitai], self.price, **_WORK)
        self.start.click(self._start, order, followed, **_WORK)
        self.jobs.input(lambda id: id, self.jobs, self.job, **_SHORT).then(
            self._watch, self.job, followed, concurrency_limit=_WATCHERS, **_SHORT
        )
        self.clock.tick(self._watch, self.job, followed, concurrency_limit=_WATCHERS, **_SHORT)

    # Event handlers: each returns a dictionary of components and their new values.

    @contextmanager
    def _speaking(self, request: gr.Request, civitai: str = "") -> Iterator[Visitor | None]:
        """Within the block whoever asks speaks, with tokens that he gave; who is not signed in with none of ours."""
        visitor = self.door.visitor(request.request)
        tokens = Tokens() if visitor is None else visitor.tokens
        tokens = Tokens(tokens.hub, civitai.strip() or tokens.civitai)
        try:
            with on_behalf_of(tokens):
                yield visitor
        except HSWQError as error:  # a server may have said them back
            raise type(error)(tokens.hidden_in(str(error))) from None

    def _arrive(self, request: gr.Request) -> dict:
        visitor = self.door.visitor(request.request)
        link = str(request.query_params.get("link", ""))[:_LONGEST]
        remark = REMARKS.get(str(request.query_params.get("sign-in", "")), "")
        found = {self.account: view.account(visitor, self.door.address, link), self.link: link}
        found[self.said] = view.note(remark, "error")
        if visitor is not None:
            found |= self._mine(request)
        return found

    def _mine(self, request: gr.Request, current: str | None = None) -> dict:
        """The visitor's jobs to choose from. current: the one that is shown."""
        try:
            with self._speaking(request):
                jobs = [(repo_in(job), str(job.status.stage), job.id) for job in mine()]
        except HSWQError as error:
            return {self.said: view.note(user_message(error), "error")}
        return {self.jobs: gr.update(choices=view.choices(jobs), value=current, visible=bool(jobs))}

    def _look(self, link: str, civitai: str, request: gr.Request) -> dict:
        if not link.strip():
            return {self.said: gr.skip()}
        hidden = {self.facts: "", self.choices: gr.update(visible=False), self.start: gr.update(visible=False)}
        hidden |= {self.looked: None}
        return self._answer(request, lambda: self._found(link, civitai, request), hidden)

    def _found(self, link: str, civitai: str, request: gr.Request) -> dict:
        with self._speaking(request, civitai) as visitor:
            look = look_at(link)
            found = {self.account: view.account(visitor, self.door.address, link), self.facts: view.facts(look)}
            found |= {self.looked: look, self.said: view.note("" if visitor else _SIGNED_OUT)}
            if visitor is None:
                return found
            machines = offers(look.need, HOURS[1])
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

    def _price(
        self, look: Look | None, format: str, machine: str | None, hours: int, civitai: str, request: gr.Request
    ) -> str:
        if look is None or machine is None:
            return ""
        try:
            with self._speaking(request, civitai) as visitor:
                if visitor is None:
                    return ""
                offer = offers(look.need, hours)[machine]
                gpu = gpu_of(offer.hardware)
                if gpu is None:
                    return view.price(offer, None, "How long this machine takes is not known.")
                try:
                    return view.price(offer, outlook(look.reference, FORMATS[format][1], gpu), "")
                except HSWQError as error:
                    return view.price(offer, None, user_message(error))
        except (HSWQError, KeyError) as error:
            return view.note(user_message(error), "error")

    def _start(
        self, look, format, machine, hours, repo, privacy, licence, permitted, civitai, request: gr.Request
    ) -> dict:
        def start() -> dict:
            with self._speaking(request, civitai) as visitor:
                if look is None or machine is None or visitor is None:
                    raise OrderError("your sign-in has ended; sign in again, and look at the model anew")
                order = Order(
                    look.reference,
                    FORMATS[format][0],
                    repo.strip(),
                    privacy == _PRIVATE,
                    machine,
                    hours,
                    bool(permitted),
                    licence.strip(),
                    self.package,
                )
                job = order.start(visitor, look)
            begun = {self.job: job.id, self.start: gr.update(value=_STARTED, interactive=False)}
            return begun | self._watch(job.id, request) | self._mine(request, job.id)

        return self._answer(request, start, {})

    def _watch(self, id: str, request: gr.Request) -> dict:
        if not id:
            return {self.clock: gr.Timer(active=False)}

        def look() -> dict:
            with self._speaking(request) as visitor:
                if visitor is None:
                    raise OrderError("your sign-in has ended; the job goes on: sign in again to follow it")
                watched = watch(id)
            found = {self.progress: view.progress(watched), self.clock: gr.Timer(active=not watched.ended)}
            return found | ({} if not watched.ended else self._mine(request, id)) | {self.said: ""}

        return self._answer(request, look, {self.clock: gr.Timer(active=False)})

    def _answer(self, request: gr.Request, act: Callable[[], dict], otherwise: dict) -> dict:
        """What `act` says; an error as a sentence, with `otherwise`. Whose sign-in has ended sees that."""
        try:
            return act()
        except Exception as error:
            found = {self.said: view.note(user_message(error), "error")}
            if isinstance(error, AccountError | OrderError):
                found[self.account] = view.account(self.door.visitor(request.request), self.door.address)
            return otherwise | found
