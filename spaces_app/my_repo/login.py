"""Signing in with Hugging Face (OAuth 2, OpenID Connect, by Authlib).

What a visitor's browser keeps is a number that says nothing; his token is in this process's memory and nowhere else, so
that a restart forgets it, and so does signing out.
"""

import os
import secrets
import time
from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

from authlib.common.errors import AuthlibBaseError
from authlib.integrations.starlette_client import OAuth
from httpx import HTTPError
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from hswq_hub.sources.http.tokens import Tokens
from hswq_runtime.errors import HSWQError

from .visitor import Visitor, account_of

SCOPES = ("openid", "profile", "contribute-repos", "jobs")
"""Who it is; make repos, and write to those alone; start jobs."""
COOKIE = "hswq_visitor"
_STATE_COOKIE, _STATE_SECONDS = "hswq_sign_in", 600
_BEGIN, _CALLBACK, _OUT = "/login/huggingface", "/login/callback", "/sign-out"
_SIGN_IN, _LINK = "sign-in", "link"
_MOST = 5000
REMARKS = {
    "refused": "You are not signed in: Hugging Face was not allowed to let this page act for you.",
    "failed": "Signing in did not work; try it again.",
}
"""What the query says after a sign-in that came to nothing, and what that means to people."""


class Login:
    """A `Door` with Hugging Face's. space: host of the Space that this is; None: it is served here, without TLS."""

    address: str | None = _BEGIN.removeprefix("/")

    def __init__(self, provider: str, client: str, secret: str, scopes: Sequence[str], space: str | None = None):
        self._visitors: dict[str, Visitor] = {}
        self._space = space
        self._oauth = OAuth()
        self._oauth.register(
            "huggingface",
            client_id=client,
            client_secret=secret,
            client_kwargs={"scope": " ".join(scopes), "code_challenge_method": "S256"},
            server_metadata_url=f"{provider.rstrip('/')}/.well-known/openid-configuration",
        )

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> "Login | None":
        """From what Hugging Face tells a Space with `hf_oauth: true`; None: this is none.

        Raises:
            HSWQError: it is not all there.
        """
        if "OAUTH_CLIENT_ID" not in environment:
            return None
        names = ("OPENID_PROVIDER_URL", "OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES")
        if missing := [name for name in names if not environment.get(name)]:
            raise HSWQError(f"signing in needs {', '.join(missing)}; say hf_oauth: true in the Space's README.md")
        provider, client, secret, scopes = (environment[name] for name in names)
        if lacking := [scope for scope in SCOPES[2:] if scope not in scopes.split()]:
            raise HSWQError(f"signing in needs the scopes {', '.join(lacking)} in hf_oauth_scopes of the README.md")
        space = environment.get("SPACE_HOST", "").split(",")[0].strip()
        return cls(provider, client, secret, scopes.split(), space or None)

    @property
    def routes(self) -> list[Route]:
        return [
            Route(_BEGIN, self._begin),
            Route(_CALLBACK, self._end),
            Route(_OUT, self._sign_out, methods=["POST"]),
        ]

    @property
    def middleware(self) -> list[Middleware]:
        """Holds what Authlib has to know between leaving for Hugging Face and coming back. Its key dies with us."""
        return [
            Middleware(
                SessionMiddleware,
                secret_key=secrets.token_hex(32),
                session_cookie=_STATE_COOKIE,
                max_age=_STATE_SECONDS,
                same_site="lax",
                https_only=self._space is not None,
            )
        ]

    def visitor(self, request: HTTPConnection) -> Visitor | None:
        """Who asks. Somebody whose token has expired is forgotten."""
        found = self._visitors.get(number := request.cookies.get(COOKIE, ""))
        if found is not None and found.left <= 0:
            self._visitors.pop(number, None)
            return None
        return found

    async def _begin(self, request: Request) -> Response:
        request.session.clear()  # of an attempt that was given up
        link = request.query_params.get(_LINK, "")
        back = f"https://{self._space}{_CALLBACK}" if self._space else str(request.url_for(self._end.__name__))
        try:
            answer: Response = await self._oauth.huggingface.authorize_redirect(request, back)
        except (AuthlibBaseError, HTTPError):
            return _home({_SIGN_IN: "failed", _LINK: link})
        request.session[_LINK] = link
        return answer

    async def _end(self, request: Request) -> Response:
        link = {_LINK: request.session.get(_LINK, "")}
        if "error" in request.query_params:
            return _home({_SIGN_IN: "refused"} | link)
        try:
            told = await self._oauth.huggingface.authorize_access_token(request)
            name = await run_in_threadpool(account_of, told["access_token"])
        except (AuthlibBaseError, HTTPError, HSWQError, KeyError):  # none of them shows a token, and none is needed
            return _home({_SIGN_IN: "failed"} | link)
        request.session.clear()
        answer = _home(link)
        number = self._remember(Visitor(name, Tokens(told["access_token"]), told.get("expires_at")))
        secure = self._space is not None
        answer.set_cookie(COOKIE, number, httponly=True, samesite="lax", secure=secure)
        return answer

    async def _sign_out(self, request: Request) -> Response:
        self._visitors.pop(request.cookies.get(COOKIE, ""), None)
        answer = _home({}, status=303)
        answer.delete_cookie(COOKIE)
        return answer

    def _remember(self, visitor: Visitor) -> str:
        """A number for the browser that cannot be guessed."""
        now = time.time()
        kept = {number: one for number, one in self._visitors.items() if one.expires is None or one.expires > now}
        self._visitors = dict(list(kept.items())[-_MOST + 1 :])
        number = secrets.token_urlsafe(32)
        self._visitors[number] = visitor
        return number


def _home(query: Mapping[str, str], status: int = 302) -> RedirectResponse:
    text = urlencode({name: value for name, value in query.items() if value})
    return RedirectResponse(f"/?{text}" if text else "/", status)
