"""Whose token it is and where it may write, checked before anything costs time."""

from typing import Any

from hswq_runtime.hub_errors import hub_site as site

from .client import AccountError, api, hub_token, patiently

_WRITERS = ("admin", "write", "contributor")
_READERS = ("read", "no_access")


def check_account(owner: str, *, proposing: bool = False) -> str:
    """The name of the token's account, after a check that it may write repos of `owner`.

    proposing: only a pull request is to be opened, which any token that is not read-only may try.

    Raises:
        AccountError: no token, one that is not accepted or may only read, or an account without rights in `owner`.
    """
    hub_token()
    who = patiently(api().whoami)
    name, auth = str(who["name"]), who.get("auth") or {}
    # What somebody allowed an app (OAuth) has scopes, which only the attempt tells.
    token = (auth.get("accessToken") if auth.get("type") == "access_token" else None) or {}
    if token.get("role") == "read":
        raise AccountError(
            f"the token of {name} can only read; make one with write access at {site()}/settings/tokens and run "
            "`hf auth login`"
        )
    if proposing:
        return name
    roles = {org["name"].casefold(): org.get("roleInOrg") for org in who.get("orgs") or ()}
    if owner.casefold() != name.casefold():
        if owner.casefold() not in roles:
            raise AccountError(f"{name} is not a member of {owner}; upload to {name}/… or join {owner} first")
        if roles[owner.casefold()] in _READERS:
            raise AccountError(
                f"{name} may only read in {owner}; ask its admins for the role {' or '.join(_WRITERS[1:])}, or upload "
                f"to {name}/…"
            )
    if token.get("role") == "fineGrained" and not _covers(token.get("fineGrained") or {}, owner):
        raise AccountError(
            f"the fine-grained token of {name} may not write to the repos of {owner}; allow it at "
            f"{site()}/settings/tokens"
        )
    return name


def _covers(fine_grained: dict[str, Any], owner: str) -> bool:
    """Whether a fine-grained token has write access to repos of `owner`, or to one of them."""
    return any(
        scope["entity"].get("name", "").split("/")[0].casefold() == owner.casefold()
        and "repo.write" in scope.get("permissions", ())
        for scope in fine_grained.get("scoped") or ()
    )
