"""Parts of the page as HTML. What others wrote is escaped here and nowhere else."""

import re
from collections.abc import Sequence
from html import escape
from urllib.parse import urlencode

from huggingface_hub import JobInfo

from hswq_hub.common.text import megabytes, roughly
from hswq_hub.jobs.jobs import Offer
from hswq_runtime.hub_errors import hub_site
from hswq_runtime.text import shown

from .login import LONGEST_LINK
from .look import Look, Outlook
from .order import Watched, repo_in
from .visitor import Visitor

_NEW_TAB_IN_A_FRAME = "this.target = window.top === window ? '_self' : '_blank'"
"""A Space is shown within a frame, where browsers keep no cookie of it: signing in goes on in a tab of its own."""
_COMMAND = re.compile(r"`|--\w|\b(CIVITAI_API_TOKEN|HF_TOKEN|HF_ENDPOINT)\b|same command")


def account(visitor: Visitor | None, address: str | None, link: str = "") -> str:
    """Who is signed in, and the way in or out. address: where one signs in; None: nobody does. link: what was pasted,
    so that it is not lost."""
    if visitor is None and address is not None:
        target = f"{address}?{urlencode({'link': link})}" if link else address
        return (
            f'<p class="account"><a class="sign-in" id="sign-in" href="{escape(target)}" '
            f'onclick="{_NEW_TAB_IN_A_FRAME}">Sign in with Hugging Face</a><span>The job runs on your account and your '
            "credits. This page may start jobs, and write to the repos that it makes for them, no others.</span></p>"
        )
    if visitor is None:
        return '<p class="account"><span>Open this page in a browser on this machine, by its own address.</span></p>'
    leave = '<form method="post" action="sign-out"><button id="sign-out">Sign out</button></form>'
    name = f"<span>Signed in as <b>{escape(visitor.name)}</b></span>"
    return f'<div class="account">{name}{leave if address else ""}</div>{_civitai(visitor, link) if address else ""}'


def _civitai(visitor: Visitor, link: str) -> str:
    if visitor.tokens.civitai is not None:
        return '<p class="civitai" id="civitai-kept">Your Civitai token is known until you sign out.</p>'
    return (
        '<details class="civitai" id="civitai"><summary>A Civitai token, for models there</summary>'
        '<form method="post" action="civitai-token">'
        f'<input type="password" name="token" aria-label="Civitai token" required maxlength="{LONGEST_LINK}" '
        f'autocomplete="off"><input type="hidden" name="link" value="{escape(link)}"><button>Use it</button></form>'
        "<p>Made at civitai.com/user/account. It goes to Civitai, and into the secrets of your job. This page keeps it "
        "in memory until you sign out.</p></details>"
    )


def facts(look: Look) -> str:
    """What was found behind a link."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(shown(value, 200))}</dd>" for name, value in look.facts)
    objections = "".join(f"<li>{escape(shown(text, 200))}</li>" for text in look.objections)
    warned = f"<p>Its creator does not allow this freely:</p><ul>{objections}</ul>" if objections else ""
    return f'<dl class="facts">{rows}</dl>{warned}'


def machine(offer: Offer) -> str:
    """A machine as it is chosen."""
    gpu = offer.hardware.accelerator
    return f"{offer.hardware.name}{f', {gpu.vram}' if gpu else ''}, ${offer.hourly:.2f} an hour"


def price(offer: Offer, found: Outlook | None, why: str) -> str:
    """What a job costs at most, and by estimate. found: None: there is none, and `why` says why."""
    most = f'<b id="most">${offer.most:.2f}</b> at most'
    if found is None:
        return f'<p class="price">{most}. {escape(why)}</p>'
    cost = offer.hourly * found.seconds / 3600
    late = " It may not be done in that time; choose more." if found.seconds > 0.8 * offer.seconds else ""
    return (
        f'<p class="price">{most}; by estimate {roughly(found.seconds)} of work, ${cost:.2f}, and a folder of '
        f"{megabytes(found.bytes)} at most.{late}</p>"
    )


def progress(watched: Watched) -> str:
    """How a job is doing, and what came of it."""
    job, stage = watched.job, str(watched.job.status.stage)
    lines = escape("\n".join(shown(line, 200) for line in watched.lines)) or "it has not written anything yet"
    address, name = f"{hub_site()}/{watched.repo}", escape(watched.repo)
    link = f'<a id="published" href="{escape(address)}" target="_blank" rel="noopener">{name}</a>'
    if watched.succeeded and watched.matched is not None:
        files = f"{watched.matched} quantized file{'s match' if watched.matched > 1 else ' matches'}"
        head = f'<p class="done">Done: {link}. Its {files} the record there, by SHA-256.</p>'
    elif watched.succeeded:
        head = f'<p class="failed">The job is done, but not all is well with {link}: {escape(watched.problem)}.</p>'
    elif watched.ended:
        said = f": {escape(shown(job.status.message, 200))}" if job.status.message else ""
        head = (
            f'<p class="failed">The job ended as {escape(stage.lower())}{said}. What it printed last is below; nothing '
            "more is billed.</p>"
        )
    else:
        page = f'<a href="{escape(job.url)}" target="_blank" rel="noopener">All that it writes</a>'
        head = (
            f"<p>The job is {escape(stage.lower())}. It goes on without this page: come back, and it is among your "
            f"jobs. {page}</p>"
        )
    return f'<div class="job" data-stage="{escape(stage)}">{head}<pre>{lines}</pre></div>'


def note(text: str, kind: str = "info") -> str:
    """A sentence for the visitor; nothing if there is none."""
    return f'<p class="status {kind}">{escape(text)}</p>' if text else ""


def choices(jobs: Sequence[JobInfo]) -> list[tuple[str, str]]:
    """Jobs to choose from, by id."""
    return [(f"{shown(repo_in(job), 80)}, {str(job.status.stage).lower()}", job.id) for job in jobs]


def without_commands(text: str) -> str:
    """A message without the clauses that tell what to type into a terminal, unless it has no others."""
    clauses = text.split("; ")
    return "; ".join([clause for clause in clauses if not _COMMAND.search(clause)] or clauses[:1]).rstrip(".") + "."
