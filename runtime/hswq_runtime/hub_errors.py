"""Each way in which the Hub's client fails has a kind, and each kind has one sentence, which says what to do.

Who calls the client says only which exception a kind becomes. No sentence holds a token.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .errors import HSWQError
from .text import address, shown

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

_LONGEST = 120
"""Characters of a server's message that are shown."""


class Kind(Enum):
    """What went wrong."""

    BAD_NAME = "bad name"
    NO_REPO = "no such repo"
    GATED = "gated"
    DISABLED = "disabled repo"
    NO_REVISION = "no such revision"
    NO_FILE = "no such file"
    NOT_FOUND = "not found"
    TOKEN = "token not accepted"
    FORBIDDEN = "forbidden"
    PAYMENT = "payment"
    CONFLICT = "conflict"
    BUSY = "too many requests"
    SERVER = "server error"
    STORAGE = "storage error"
    REFUSED = "refused"
    OFFLINE = "offline"
    NOT_CACHED = "not in the cache"
    XET = "storage not reached"
    UNREACHABLE = "not reached"
    DAMAGED = "damaged file"
    CARD = "bad front matter"


@dataclass(frozen=True)
class Refusal:
    """Why a call of the Hub's client failed.

    status: HTTP status; None: there was no answer. said: the server's own message, token redacted. wait: seconds that
    the server asks to wait. broken: class name of a broken connection's error.
    """

    kind: Kind
    status: int | None = None
    said: str = ""
    wait: float | None = None
    broken: str = ""

    def sentence(self, subject: str) -> str:
        """One sentence for people: the cause and what to do. subject: what was asked for: "owner/repo", "job 12"."""
        site, subject = hub_site(), address(subject)
        said = f" ({self.said})" if self.said else ""
        when = f"in {self.wait:.0f} seconds" if self.wait else "later"
        return {
            Kind.BAD_NAME: f"{subject} is no name of a Hub repo: owner/name is",
            Kind.NO_REPO: f"the Hub has no repo {subject} that you may see; check its name, or run `hf auth login` if "
            "it is private",
            Kind.GATED: f"{subject} is gated: accept its terms on its page, then run `hf auth login` with a token of "
            "that account",
            Kind.DISABLED: f"the Hub has disabled {subject}; look at its page, or choose another repo",
            Kind.NO_REVISION: f"{subject} has no such revision; look at its branches and tags",
            Kind.NO_FILE: f"{subject} has no such file; look at its files",
            Kind.NOT_FOUND: f"the Hub does not know {subject}; check its name",
            Kind.TOKEN: "the Hub does not accept the token (expired or revoked?); run `hf auth login` again",
            Kind.FORBIDDEN: f"the token may not do this on {subject}{said}; make one that may at "
            f"{site}/settings/tokens and run `hf auth login`",
            Kind.PAYMENT: f"the Hub asks for credit for {subject}{said}; add some at {site}/settings/billing",
            Kind.CONFLICT: f"somebody else keeps committing to {subject}; run the same command again",
            Kind.BUSY: f"the Hub asks for patience (429) on {subject}; run the same command again {when}",
            Kind.SERVER: f"the Hub answers {self.status} for {subject}; run the same command again later",
            Kind.STORAGE: f"the storage of {site} answers {self.status} for {subject}; run the same command again",
            Kind.REFUSED: f"the Hub refuses (answer {self.status}) what is to be done on {subject}{said}",
            Kind.OFFLINE: f"{subject} cannot be reached while HF_HUB_OFFLINE is set; unset it",
            Kind.NOT_CACHED: f"{subject} is not in the cache and the Hub cannot be reached; check the connection and "
            "HF_HUB_OFFLINE",
            Kind.XET: f"the storage of {site} (Xet) cannot be reached; run the same command again, or set "
            "HF_HUB_DISABLE_XET=1 to send files by plain HTTP",
            Kind.UNREACHABLE: f"the Hub at {site} cannot be reached for {subject}, the connection broke "
            f"({self.broken}); check it, and run the same command again",
            Kind.DAMAGED: f"{subject} holds a damaged safetensors file: {self.said}",
            Kind.CARD: f"the Hub refuses the card's front matter: {self.said}",
        }[self.kind]


def hub_site() -> str:
    """The address of the Hub that huggingface_hub is set to (`HF_ENDPOINT`)."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def refusal_of(error: BaseException) -> Refusal | None:
    """The kind of `error`, or of the answer or broken connection that it wraps; None if it is not the Hub's."""
    import httpx2
    from huggingface_hub import errors

    cause = cause_of(error)
    said = _plain(getattr(cause, "server_message", None))
    if isinstance(cause, errors.SafetensorsParsingError):
        return Refusal(Kind.DAMAGED, said=_plain(str(cause)))
    if isinstance(cause, errors.HFValidationError):
        return Refusal(Kind.BAD_NAME)
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return Refusal(Kind.OFFLINE)
    if isinstance(cause, errors.LocalEntryNotFoundError):
        return Refusal(Kind.NOT_CACHED)
    if isinstance(cause, errors.HfHubHTTPError):
        return _answered(cause, said)
    if isinstance(cause, ConnectionError) and "xet" in str(cause):
        return Refusal(Kind.XET)
    if isinstance(cause, (ConnectionError, TimeoutError, httpx2.HTTPError, json.JSONDecodeError)):
        return Refusal(Kind.UNREACHABLE, broken=type(cause).__name__)
    if isinstance(cause, ValueError) and "README.md" in str(cause):
        return Refusal(Kind.CARD, said=_plain(str(cause)))
    return None


def cause_of(error: BaseException) -> BaseException:
    """The HTTP error or broken connection that `error` wraps, else `error` itself."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    chain = [error]
    while (deeper := chain[-1].__cause__ or chain[-1].__context__) is not None and deeper not in chain:
        chain.append(deeper)
    if isinstance(error, ValueError) and "README.md" in str(error):
        return error
    known = (HfHubHTTPError, httpx2.HTTPError, ConnectionError, HFValidationError)
    return next((one for one in chain if isinstance(one, known)), error)


@contextmanager
def explained(
    subject: str,
    becomes: Callable[[Kind], type[HSWQError]],
    instead: Mapping[Kind, str] | None = None,
) -> Iterator[None]:
    """Turn what the Hub's client raises in the block into an exception of ours, with one sentence about `subject`.

    Args:
        subject: as of :meth:`Refusal.sentence`.
        becomes: the exception class of each kind.
        instead: sentences for kinds that mean something else here.

    Raises:
        HSWQError: of the class that `becomes` names.
    """
    try:
        yield
    except HSWQError:
        raise
    except Exception as error:
        if (refusal := refusal_of(error)) is None:
            raise
        sentence = (instead or {}).get(refusal.kind) or refusal.sentence(subject)
        raise becomes(refusal.kind)(sentence) from None


def _answered(error: "HfHubHTTPError", said: str) -> Refusal:
    from huggingface_hub import errors

    status = int(error.response.status_code)
    for kind, known in (
        (Kind.GATED, errors.GatedRepoError),
        (Kind.DISABLED, errors.DisabledRepoError),
        (Kind.NO_REPO, errors.RepositoryNotFoundError),
        (Kind.NO_REVISION, errors.RevisionNotFoundError),
        (Kind.NO_FILE, errors.EntryNotFoundError),
    ):
        if isinstance(error, known):
            return Refusal(kind, status, said)
    if urlsplit(str(error.response.url)).netloc != urlsplit(hub_site()).netloc:
        return Refusal(Kind.STORAGE, status, said)  # it is not the Hub, and its signed address may have expired
    kinds = {401: Kind.TOKEN, 402: Kind.PAYMENT, 403: Kind.FORBIDDEN, 404: Kind.NOT_FOUND, 412: Kind.CONFLICT}
    kind = kinds.get(status) or (Kind.BUSY if status == 429 else Kind.SERVER if status >= 500 else Kind.REFUSED)
    return Refusal(kind, status, said, asked_wait(error))


def asked_wait(error: BaseException) -> float | None:
    """Seconds that the Hub asks to wait; None: it does not say."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import parse_ratelimit_headers

    if not isinstance(error, HfHubHTTPError):
        return None
    limit = parse_ratelimit_headers(error.response.headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds) + 1.0
    after = error.response.headers.get("Retry-After", "")
    return float(after) + 1.0 if after.isdigit() else None


def _plain(text: object) -> str:
    """A server's message on one line, cut to `_LONGEST`, without control characters, token redacted."""
    from huggingface_hub import get_token

    if not isinstance(text, str):
        return ""
    token = get_token()
    words = " ".join(text.split())
    return shown(words.replace(token, "…") if token else words, _LONGEST)
