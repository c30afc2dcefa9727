"""Who is looking at the page, and with what he speaks to the Hub."""

import time
from dataclasses import dataclass
from typing import ClassVar, Protocol
from urllib.parse import urlsplit

from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.routing import Route

from hswq_hub.hub.account import check_account
from hswq_hub.hub.client import explained
from hswq_hub.sources.http.credentials import civitai_token
from hswq_hub.sources.http.tokens import Tokens, hub_token, on_behalf_of
from hswq_hub.sources.http.web import LOOPBACK


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


class OwnMachine:
    """The only visitor sits at this machine, and its tokens are his."""

    address: str | None = None
    routes: ClassVar[list[Route]] = []
    middleware: ClassVar[list[Middleware]] = []

    def __init__(self) -> None:
        self._visitor = Visitor(_own_account(), Tokens(hub_token(), civitai_token()))

    def visitor(self, request: HTTPConnection) -> Visitor | None:
        """He who sits here. A stranger's page that calls itself by another host's name is not he."""
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname
        return self._visitor if host in LOOPBACK else None


def account_of(token: str) -> str:
    """The name of the account that a token speaks for.

    Raises:
        AccountError: it is not accepted.
        UploadError: the Hub cannot be reached.
    """
    with on_behalf_of(Tokens(token)):
        return _own_account()


def _own_account() -> str:
    with explained("your account"):
        return check_account("", proposing=True)
