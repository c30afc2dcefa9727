"""The Hub's client for uploads: retries while it is busy, and its errors as sentences."""

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx2
from huggingface_hub import HfApi

from hswq_runtime import hub_errors
from hswq_runtime.errors import HSWQError
from hswq_runtime.hub_errors import Kind, asked_wait, cause_of, refusal_of
from hswq_runtime.hub_errors import hub_site as site

from .. import __version__
from ..common.retry import Patience, Transient, retried
from ..sources.http import tokens

T = TypeVar("T")
TRIES = 4
LONGEST_WAIT = 600.0
"""Seconds: the longest wait that the Hub may ask for."""
_BUSY = (408, 429, 500, 502, 503, 504)


class UploadError(HSWQError):
    """The Hub refuses an upload, or cannot be reached."""


class AccountError(UploadError):
    """There is no token, or it may not do what was asked for."""


class VerificationError(UploadError):
    """What the Hub holds after an upload is not what was uploaded."""


def api() -> HfApi:
    """The client for the Hub that huggingface_hub is set to (`HF_ENDPOINT`), with its token or the given one."""
    return HfApi(token=tokens.client_token(), library_name="hswq-hub", library_version=__version__)


def hub_token() -> str:
    """The given token, or the one that huggingface_hub finds, from HF_TOKEN or `hf auth login`.

    Raises:
        AccountError: there is none, or it cannot be one; the message does not show it.
    """
    token = tokens.hub_token()
    if token is None:
        raise AccountError(
            f"there is no Hugging Face token here; make one with write access at {site()}/settings/tokens and run "
            "`hf auth login`, or set HF_TOKEN"
        )
    if not re.fullmatch(r"[!-~]+", token):  # an HTTP library would quote a malformed header in its error
        raise AccountError("the Hugging Face token has blanks or odd characters in it; run `hf auth login` again")
    return token


def patiently(call: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """Return `call(...)`, retried while the Hub is busy or the connection breaks.

    Waits double, unless the Hub asks for another. The last error is raised as it is.
    """
    return retried(lambda: call(*arguments, **options), _transient, Patience(tries=TRIES, most=LONGEST_WAIT))


def is_conflict(error: Exception) -> bool:
    """Whether the commit failed because somebody else committed in between."""
    refusal = refusal_of(error)
    return refusal is not None and refusal.kind is Kind.CONFLICT


@contextmanager
def explained(repo: str, instead: Mapping[Kind, str] | None = None) -> Iterator[None]:
    """Turn what the Hub's client raises in the block into one sentence about `repo`. No message holds a token.

    Raises:
        AccountError: the token may not do this, or sees no such repo.
        UploadError: all other failures.
    """
    with _without_signatures(), hub_errors.explained(repo, _becomes, instead):
        yield


def _becomes(kind: Kind) -> type[UploadError]:
    account = (Kind.NO_REPO, Kind.GATED, Kind.TOKEN, Kind.FORBIDDEN, Kind.PAYMENT)
    return AccountError if kind in account else UploadError


def _transient(error: Exception) -> Transient | None:
    """A transient failure, None for all others."""
    refusal = refusal_of(error)
    if refusal is None or isinstance(cause_of(error), (httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)):
        return None
    busy = refusal.status in _BUSY or refusal.kind in (Kind.STORAGE, Kind.UNREACHABLE, Kind.XET)
    return Transient(asked_wait(cause_of(error))) if busy else None


@contextmanager
def _without_signatures() -> Iterator[None]:
    """Remove queries from the addresses that the client logs: those of its storage are signed."""

    def shorten(record: logging.LogRecord) -> bool:
        record.msg, record.args = re.sub(r"(https?://[^\s?]+)\?[^\s\"]+", r"\1", record.getMessage()), ()
        return True

    loggers = [logging.getLogger(name) for name in ("huggingface_hub.utils._http", "httpx2")]
    for logger in loggers:
        logger.addFilter(shorten)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(shorten)
