"""The HTTP client: our own user agent, a token for one origin only, retries after transient failures.

Redirects are followed here and not by the library, so that the token never leaves the origin that it was made for:
Civitai redirects a download to a storage, which would learn the secret and refuses foreign tokens.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any

import httpx2

from ... import __version__
from ...common.retry import Patience
from ...common.text import plain
from ..errors import DownloadError, UnknownReferenceError

# It logs each address that it requests, and those of Civitai's storage are signed.
logging.getLogger("httpx2").setLevel(logging.WARNING)

USER_AGENT = f"hswq-hub/{__version__}"
"""Never a browser's: Civitai sends browsers its errors as web pages."""
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524})
"""HTTP statuses of transient failures."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 5
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_MOST_BODY = 16 << 20
TIMEOUT = httpx2.Timeout(30, read=60)
"""Seconds for a connection, and between two pieces of an answer."""


class Interrupted(Exception):
    """A transient failure; retry. The message names the host and nothing more of the address.

    retry_after: seconds that the host asks to wait, None if it does not say.
    """

    def __init__(self, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.retry_after = retry_after


def wait_for(failure: Interrupted, patience: Patience) -> None:
    """Sleep before the next try.

    Raises:
        DownloadError: there is no further try, or the host asks for too long a wait.
    """
    asked = failure.retry_after
    if patience.wait(asked):
        return
    if asked is not None and patience.asks_too_much(asked):
        raise DownloadError(f"{failure} and asks to wait {asked / 60:.0f} minutes; run the same command then")
    raise DownloadError(f"{failure}, {patience.tries} times in a row; run the same command later")


@dataclass
class Web:
    """A client for one host. token: sent to the origin of `endpoint` and nowhere else."""

    endpoint: str
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if "@" in self.endpoint:  # not shown: what is before it is a password
            raise UnknownReferenceError(
                "an endpoint has no user name or password in it; check --civitai-endpoint or HF_ENDPOINT"
            )
        home = _address(self.endpoint)
        if home is None or not (home.scheme == "https" or home.host in LOOPBACK):
            shown = plain(self.endpoint.split("?")[0])
            raise UnknownReferenceError(f"{shown} is no https address; check --civitai-endpoint or HF_ENDPOINT")

    @property
    def host(self) -> str:
        """The endpoint's host, without a port."""
        return httpx2.URL(self.endpoint).host

    @cached_property
    def _client(self) -> httpx2.Client:
        headers = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity"}
        return httpx2.Client(headers=headers, timeout=TIMEOUT, follow_redirects=False)

    def is_home(self, url: httpx2.URL) -> bool:
        """Whether `url` has the endpoint's origin."""
        return _origin(url) == _origin(httpx2.URL(self.endpoint))

    @contextmanager
    def get(self, url: str, headers: dict[str, str] | None = None) -> Iterator[httpx2.Response]:
        """The response to a GET after all redirects, its body still unread.

        Raises:
            Interrupted: there is no connection, or it broke, also while the block reads.
            DownloadError: too many redirects, or one to an address that is not safe.
        """
        address, at_home = httpx2.URL(self.endpoint).join(url), True
        try:
            for _ in range(_MOST_REDIRECTS + 1):
                # After the first redirect to another origin no request gets the token, not even one back home.
                at_home = at_home and self.is_home(address)
                secret = {"Authorization": f"Bearer {self.token}"} if self.token and at_home else {}
                request = self._client.build_request("GET", address, headers={**(headers or {}), **secret})
                response = self._client.send(request, stream=True)
                try:
                    target = response.headers.get("Location") if response.status_code in _REDIRECTS else None
                    if target is None:
                        yield response
                        return
                    address = self._next(address, target)
                finally:
                    response.close()
        except httpx2.TimeoutException as error:
            raise Interrupted(f"{address.host} does not answer") from error
        except httpx2.TransportError as error:
            raise Interrupted(f"the connection to {address.host} broke") from error
        raise DownloadError(f"{self.host} redirects without end")

    def _next(self, address: httpx2.URL, target: str) -> httpx2.URL:
        following = _address(target, address)
        if following is None or (address.scheme, following.scheme) == ("https", "http"):
            raise DownloadError(f"{address.host} redirects to something that is no safe address")
        return following

    def get_json(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON body of `path`, with retries after transient failures; {} for a body that is no object.

        Raises:
            DownloadError: it kept failing, or the host asks for too long a wait.
        """
        patience = Patience()
        while True:
            try:
                with self.get(path, {"Accept": "application/json"}) as response:
                    raise_if_passing(response)
                    return response.status_code, read_json(response)
            except Interrupted as failure:
                wait_for(failure, patience)


def raise_if_passing(response: httpx2.Response) -> None:
    """Raise Interrupted for the status of a transient failure."""
    if response.status_code in PASSING:
        raise Interrupted(f"{response.url.host} answers {response.status_code}", _retry_after(response))


def read_json(response: httpx2.Response) -> dict[str, Any]:
    """The body of a streamed response as a JSON object; {} if it is anything else, or too long."""
    body = bytearray()
    for piece in response.iter_bytes():
        body += piece
        if len(body) > _MOST_BODY:
            return {}
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds that the Retry-After header asks for; None without a valid one."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value[:9])
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max((when - datetime.now(UTC)).total_seconds(), 0)


def _address(text: str, base: httpx2.URL | None = None) -> httpx2.URL | None:
    """A web address, None for anything else."""
    try:
        url = base.join(text) if base else httpx2.URL(text)
    except httpx2.InvalidURL:
        return None
    return url if url.scheme in ("http", "https") and url.host else None


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or {"http": 80, "https": 443}.get(url.scheme)
