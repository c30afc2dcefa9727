"""Who is looking at the page, and with what he speaks to the Hub."""

import os
import time
from dataclasses import dataclass
from typing import ClassVar, Protocol
from urllib.parse import urlsplit

from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hswq_hub.hub.account import check_account
from hswq_hub.hub.client import explained
from hswq_hub.sources.http.credentials import civitai_token
from hswq_hub.sources.http.tokens import Tokens, hub_token, on_behalf_of
from hswq_runtime.errors import HSWQError

NAMES = ("127.0.0.1", "localhost")
"""Of this machine, in a browser."""


@dataclass(frozen=True)
class Visitor:
    """Somebody who is signed in. name: his account. expires: when his token does, seconds since 1970; None: never."""

    name: str
    tokens: Tokens
    expires: float | None = None

    @property
    def left(self) -> float:
        """Seconds for which his token is good."""
        return float("inf") if self.expires is None else self.expires - time.time()


class Door(Protocol):
    """How visitors sign in. address: where they do; None: there is nothing to do, whoever comes is signed in. routes,
    middleware: what the page's server needs for it."""

    address: str | None

    @property
    def routes(self) -> list[Route]: ...

    @property
    def middleware(self) -> list[Middleware]: ...

    def visitor(self, request: HTTPConnection) -> Visitor | None:
        """Who asks; None: nobody who is signed in."""

    def forget(self, request: HTTPConnection) -> None:
        """His token is not accepted any more."""


class OwnMachine:
    """The only visitor sits at this machine, and its tokens are his.

    Raises:
        HSWQError: it has no token, or the page is to be reached from elsewhere.
    """

    address: str | None = None
    routes: ClassVar[list[Route]] = []

    def __init__(self) -> None:
        if os.environ.get("GRADIO_SHARE", "").lower() == "true":
            raise HSWQError("a page with this machine's token is not shared; unset GRADIO_SHARE")
        with explained("your account"):
            name = check_account("", proposing=True)
        self._visitor = Visitor(name, Tokens(hub_token(), civitai_token()))

    @property
    def middleware(self) -> list[Middleware]:
        return [Middleware(Unframed)]

    def visitor(self, request: HTTPConnection) -> Visitor | None:
        """He who sits here, not a page of another site in his browser, nor somebody behind a proxy."""
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname
        site = request.headers.get("sec-fetch-site", "none")
        passed_on = any(name.startswith("x-forwarded") or name == "forwarded" for name in request.headers)
        return self._visitor if host in NAMES and site in ("none", "same-origin") and not passed_on else None

    def forget(self, request: HTTPConnection) -> None:
        """Stays: the next run of `hf auth login` mends it."""


class Unframed:
    """Tells browsers to show the page in no other site's frame, where one could be made to click unawares."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", b"frame-ancestors 'none'")]
            await send(message)

        await self._app(scope, receive, answer if scope["type"] == "http" else send)


def account_of(token: str) -> str:
    """The name of the account that a token speaks for.

    Raises:
        AccountError: it is not accepted.
        UploadError: the Hub cannot be reached.
    """
    with on_behalf_of(Tokens(token)), explained("your account"):
        return check_account("", proposing=True)
