"""The blind test as HTML. Nothing in it tells the two pictures apart but their pixels."""

from html import escape
from importlib.resources import files

from ..comparison.round import PAIRS, Pair, Round
from .chance import at_least, at_most
from .view import data_url, status

INTRO = (
    '<p class="lead">Two pictures of the same prompt, from the same noise: one by the original, one by the file that '
    f"you choose. <b>Which is the original?</b> After {PAIRS} pairs you see how far from chance you were.</p>"
    '<p class="fine">Your answers stay in this visit: nothing is stored, and nothing is sent to anybody.</p>'
)
_HARDLY = 0.05
"""What happens less often by chance is not taken for it."""


def script() -> str:
    """Clicks and keys become the event "choose"."""
    return (files("spaces_app.page") / "blind.js").read_text(encoding="utf-8")


def stage(round: Round) -> str:
    """What there is to see now: a pair, a word that one is being made, or the result."""
    if round.finished:
        return _result(round)
    if (pair := round.shown) is None:
        return f'<div class="blind">{status(f"Making pair {len(round.right) + 1} of {PAIRS}")}</div>'
    return _pair(pair)


def _pair(pair: Pair) -> str:
    sides = "".join(_side(number, picture, pair) for number, picture in enumerate(pair.pictures, 1))
    return (
        f'<div class="blind" data-pair="{pair.number}"><p class="ask"><b>Which is the original?</b>'
        f'<span role="status">Pair {pair.number} of {PAIRS}</span>'
        '<button type="button" class="closer" aria-pressed="false" title="key: z">Closer</button></p>'
        f'<div class="pair" role="group" aria-label="Which is the original?">{sides}</div>'
        f'<p class="fine"><q>{escape(pair.prompt)}</q>'
        '<span class="keys"> · keys: 1 or ←, 2 or →; z for closer</span></p></div>'
    )


def _side(number: int, picture: bytes, pair: Pair) -> str:
    return (
        f'<div class="side"><div class="frame" data-choose="{number}">'
        f'<img alt="Picture {number}" draggable="false" src="{data_url(picture)}"></div>'
        f'<button type="button" class="choice" data-choose="{number}" '
        f'aria-label="Picture {number} is the original, pair {pair.number} of {PAIRS}">Picture {number}</button></div>'
    )


def _result(round: Round) -> str:
    right, label = sum(round.right), escape(round.label)
    if at_least(right, PAIRS) <= _HARDLY:
        verdict = f"That is hardly luck: you can tell {label} from the original."
    elif at_most(right, PAIRS) <= _HARDLY:
        verdict = f"So few are hardly luck either: you can tell the two apart, and took {label} for the original."
    else:
        verdict = f"That may well be luck: nothing here shows that you can tell {label} from the original."
    marks = "".join(
        f'<li class="{"right" if was else "wrong"}"><span aria-hidden="true">{"✓" if was else "✗"}</span>'
        f'<small>{number}<span class="said"> {"right" if was else "wrong"}</span></small></li>'
        for number, was in enumerate(round.right, 1)
    )
    return (
        f'<div class="blind result" tabindex="-1"><p class="score"><b>{right} of {PAIRS} right</b></p>'
        f"<p>Somebody who guesses gets that many or more in {percent(at_least(right, PAIRS))} of cases. {verdict}</p>"
        f'<ol class="marks" aria-label="Your answers">{marks}</ol></div>'
    )


def percent(share: float) -> str:
    """As short as it can be without calling something nothing, or everything."""
    return f"{100 * share:.0f} %" if 0.095 <= share < 0.995 or share == 1 else f"{100 * share:.1f} %"
