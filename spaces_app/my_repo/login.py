"""Signing in with Hugging Face (OAuth 2, OpenID Connect, by Authlib).

What a visitor's browser keeps is a number that says nothing, and for the minutes of a sign-in, signed, what that takes.
His tokens are in this process's memory and nowhere else, so that a restart forgets them, and so does signing out.
"""

import logging
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from urllib.parse import urlencode

from authlib.integrations.starlette_client import OAuth
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from hswq_hub.sources.errors import AccessError
from hswq_hub.sources.http.credentials import check_token
from hswq_hub.sources.http.tokens import Tokens
from hswq_runtime.errors import HSWQError

from .visitor import Visitor, account_of

_log = logging.getLogger(__name__)
SCOPES = ("openid", "profile", "contribute-repos", "jobs")
"""Who it is; make repos, and write to those alone; start jobs."""
COOKIE = "hswq_visitor"
LONGEST_LINK = 300
_STATE_COOKIE, _STATE_SECONDS = "hswq_sign_in", 600
_BEGIN, _CALLBACK, _OUT, _CIVITAI = "/login/huggingface", "/login/callback", "/sign-out", "/civitai-token"
_NOTE, _LINK = "note", "link"
_MOST, _OF_ONE, _FORM = 5000, 10, 4096
"""Visitors at once, of them with one account, and bytes of a form."""
_UNSTATED = 3600
"""Seconds for which a token is taken to be good if nobody says."""
REMARKS = {
    "refused": "You are not signed in: Hugging Face was not allowed to let this page act for you.",
    "failed": "Signing in did not work; try it again.",
    "no-token": "That cannot be a Civitai token; copy it anew from civitai.com/user/account.",
}
"""What the query says after something that came to nothing, and what that means to people."""


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
            Route(_CIVITAI, self._take_civitai_token, methods=["POST"]),
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
        found = self._visitors.get(request.cookies.get(COOKIE, ""))
        if found is not None and found.left <= 0:
            self.forget(request)
            return None
        return found

    def forget(self, request: HTTPConnection) -> None:
        """Signs him out."""
        self._visitors.pop(request.cookies.get(COOKIE, ""), None)

    async def _begin(self, request: Request) -> Response:
        request.session.clear()  # of an attempt that was given up
        link = request.query_params.get(_LINK, "")[:LONGEST_LINK]
        back = f"https://{self._space}{_CALLBACK}" if self._space else str(request.url_for(self._end.__name__))
        try:
            answer: Response = await self._oauth.huggingface.authorize_redirect(request, back)
        except Exception as error:
            return _failed(error, link)
        request.session[_LINK] = link
        return answer

    async def _end(self, request: Request) -> Response:
        link = request.session.get(_LINK, "")
        if "error" in request.query_params:
            return _home({_NOTE: "refused", _LINK: link})
        try:
            told = await self._oauth.huggingface.authorize_access_token(request)
            token = str(told["access_token"])
            name = await run_in_threadpool(account_of, token)
        except Exception as error:
            return _failed(error, link)
        request.session.clear()
        self.forget(request)  # as whom he was signed in before
        answer = _home({_LINK: link})
        number = self._remember(Visitor(name, Tokens(token), told.get("expires_at") or time.time() + _UNSTATED))
        secure = self._space is not None
        answer.set_cookie(COOKIE, number, httponly=True, samesite="lax", secure=secure)
        return answer

    async def _sign_out(self, request: Request) -> Response:
        self.forget(request)
        answer = _home({}, status=303)
        answer.delete_cookie(COOKIE)
        return answer

    async def _take_civitai_token(self, request: Request) -> Response:
        """Keep it beside his other one. By a form of its own, since Gradio remembers what is typed into its fields."""
        if int(request.headers.get("content-length") or _FORM + 1) > _FORM:
            return Response(status_code=413)
        form = await request.form()
        query = {_LINK: str(form.get(_LINK, ""))[:LONGEST_LINK]}
        visitor = self.visitor(request)
        if visitor is not None:
            try:
                token = check_token(str(form.get("token", "")))
            except AccessError:
                return _home(query | {_NOTE: "no-token"}, status=303)
            number = request.cookies[COOKIE]
            self._visitors[number] = replace(visitor, tokens=replace(visitor.tokens, civitai=token))
        return _home(query, status=303)

    def _remember(self, visitor: Visitor) -> str:
        """A number for the browser that cannot be guessed."""
        kept = [(number, one) for number, one in list(self._visitors.items()) if one.left > 0]
        his = [number for number, one in kept if one.name == visitor.name]
        oldest = {*his[: max(len(his) - _OF_ONE + 1, 0)]}
        number = secrets.token_urlsafe(32)
        self._visitors = dict([(old, one) for old, one in kept if old not in oldest][1 - _MOST :])
        self._visitors[number] = visitor
        return number


def _failed(error: Exception, link: str) -> Response:
    """What signing in may meet: a Hub that cannot be reached or answers with anything, a state, signature or clock that
    does not fit. The log names it by its kind, since its text may hold a token."""
    _log.warning("a sign-in failed: %s", type(error).__name__)
    return _home({_NOTE: "failed", _LINK: link})


def _home(query: Mapping[str, str], status: int = 302) -> RedirectResponse:
    text = urlencode({name: value for name, value in query.items() if value})
    return RedirectResponse(f"/?{text}" if text else "/", status)
