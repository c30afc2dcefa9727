"""The Hub, to write to: its client, patience while it is busy, and its refusals as sentences."""

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import parse_ratelimit_headers

from hswq_runtime.errors import HSWQError

from .. import __version__
from ..common.text import plain

TRIES = 4
LONGEST_WAIT = 600.0
_FIRST_WAIT = 1.0
_BUSY = (408, 429, 500, 502, 503, 504)


class UploadError(HSWQError):
    """The Hub refuses what is uploaded, or cannot be reached."""


class AccountError(UploadError):
    """There is no token, or it may not do what was asked for."""


class VerificationError(UploadError):
    """What the Hub holds after an upload is not what was uploaded."""


def api() -> HfApi:
    """The client for the Hub that huggingface_hub is set to (`HF_ENDPOINT`), with the token that it finds."""
    return HfApi(library_name="hswq-hub", library_version=__version__)


def site() -> str:
    """The address of that Hub."""
    return constants.ENDPOINT


def hub_token() -> str:
    """The token that huggingface_hub finds: of HF_TOKEN, or of `hf auth login`.

    Raises:
        AccountError: there is none, or it cannot be one; the message does not show it.
    """
    token = get_token()
    if token is None:
        raise AccountError(
            f"there is no Hugging Face token here; make one with write access at {site()}/settings/tokens and run "
            "`hf auth login`, or set HF_TOKEN"
        )
    if not re.fullmatch(r"[!-~]+", token):  # an HTTP library would quote a malformed header in its error
        raise AccountError("the Hugging Face token has blanks or odd characters in it; run `hf auth login` again")
    return token


def patiently(call: Callable, *arguments, **options):
    """What `call` returns, called again while the Hub is busy or the connection breaks.

    It waits for as long as the Hub asks, or twice as long each time, and lets the last error through.
    """
    for attempt in range(1, TRIES + 1):
        try:
            return call(*arguments, **options)
        except Exception as error:
            wait = _wait(error, attempt)
            if wait is None or attempt == TRIES or wait > LONGEST_WAIT:
                raise
            time.sleep(wait)


def is_conflict(error: Exception) -> bool:
    """Whether somebody else committed in between."""
    return _status(_cause(error)) == 412


def said(error: BaseException) -> str:
    """What the Hub says, in brackets; a token that it quotes is left out."""
    words = plain(getattr(error, "server_message", None))
    token = get_token()
    return f" ({words.replace(token, '…') if token else words})" if words else ""


@contextmanager
def explained(repo: str) -> Iterator[None]:
    """Every way in which the Hub's client fails on `repo`, as a sentence and what to do; none of them holds a token."""
    with _without_signatures():
        try:
            yield
        except HSWQError:
            raise
        except Exception as error:
            if (sentence := _explain(_cause(error), repo)) is None:
                raise
            raise sentence from None


def _explain(error: Exception, repo: str) -> UploadError | None:
    status, told = _status(error), said(error)
    if isinstance(error, HFValidationError):
        return UploadError(f"{repo} is no name of a Hub repo: owner/name is")
    if isinstance(error, RevisionNotFoundError):
        return UploadError(f"{repo} has no such revision; look at its branches")
    if status is not None and not _at_home(error):
        return UploadError(f"the storage of {site()} answers {status} for {repo}; run the same command again")
    if status == 401 and not isinstance(error, RepositoryNotFoundError):
        return AccountError("the Hub does not accept the token (expired or revoked?); run `hf auth login` again")
    if isinstance(error, RepositoryNotFoundError):
        return AccountError(f"the Hub has no repo {repo} that the token may see; check the name, or `hf auth login`")
    if status == 403:
        return AccountError(f"the token may not do this on {repo}{told}; make one that may at {site()}/settings/tokens")
    if status == 412:
        return UploadError(f"somebody else keeps committing to {repo}; run the same command again")
    if status == 429:
        wait = _asked_wait(error)
        when = f"in {wait:.0f} seconds" if wait else "later"
        return UploadError(f"the Hub asks for patience (429) on {repo}; run the same command again {when}")
    if status is not None and status >= 500:
        return UploadError(f"the Hub answers {status} for {repo}; run the same command again later")
    if status is not None:
        return UploadError(f"the Hub refuses (answer {status}) what is to be done on {repo}{told}")
    if isinstance(error, OfflineModeIsEnabled):
        return UploadError("the Hub cannot be reached while HF_HUB_OFFLINE is set; unset it")
    if isinstance(error, ConnectionError) and "xet" in str(error):
        return UploadError(
            f"the storage of {site()} (Xet) cannot be reached; run the same command again, or set HF_HUB_DISABLE_XET=1 "
            "to send files by plain HTTP"
        )
    if isinstance(error, (ConnectionError, TimeoutError, httpx2.HTTPError, json.JSONDecodeError)):
        return UploadError(f"the connection to {site()} broke ({type(error).__name__}); run the same command again")
    if isinstance(error, ValueError) and "README.md" in str(error):
        return UploadError(f"the Hub refuses the card's front matter: {plain(str(error), 500)}")
    return None


def _cause(error: BaseException) -> BaseException:
    """The answer or the broken connection behind `error`, which the client wraps at times; else `error` itself."""
    chain = [error]
    while (deeper := chain[-1].__cause__ or chain[-1].__context__) is not None and deeper not in chain:
        chain.append(deeper)
    known = (HfHubHTTPError, httpx2.HTTPError, ConnectionError, HFValidationError)
    if isinstance(error, ValueError) and "README.md" in str(error):
        return error
    return next((one for one in chain if isinstance(one, known)), error)


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _at_home(error: HfHubHTTPError) -> bool:
    """Whether the Hub itself answered, and not a storage whose signed address may have expired."""
    return urlsplit(str(error.response.url)).netloc == urlsplit(site()).netloc


def _wait(error: Exception, attempt: int) -> float | None:
    """Seconds until it makes sense to try again; None: it never does."""
    cause = _cause(error)
    if isinstance(cause, (OfflineModeIsEnabled, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)):
        return None
    broken = (httpx2.TransportError, ConnectionError, json.JSONDecodeError)
    busy = _status(cause) is not None and (_status(cause) in _BUSY or not _at_home(cause))
    if not busy and not isinstance(cause, broken):
        return None
    return _asked_wait(cause) or _FIRST_WAIT * 2 ** (attempt - 1)


def _asked_wait(error: BaseException) -> float | None:
    """Seconds that the Hub asks to wait."""
    if not isinstance(error, HfHubHTTPError):
        return None
    limit = parse_ratelimit_headers(error.response.headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + 1.0
    after = error.response.headers.get("Retry-After", "")
    return float(after) + 1.0 if after.isdigit() else None


@contextmanager
def _without_signatures() -> Iterator[None]:
    """The client logs whole addresses, and storage signs its own: the query is left out."""

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
