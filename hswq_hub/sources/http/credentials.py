"""The Civitai token: from the environment, else the system's keyring, else a file that only its owner can read.

huggingface_hub manages the Hub's token (`hf auth login`).
"""

import os
import re
from pathlib import Path
from typing import Any

from ...common.home import home
from ..errors import AccessError
from .tokens import given_tokens

TOKEN_VARIABLE = "CIVITAI_API_TOKEN"
_SERVICE, _ACCOUNT = "hswq-hub", "civitai"


def civitai_token(*, stored: bool = True) -> str | None:
    """The token, None if there is none; on behalf of somebody else, his.

    stored: whether a stored or given token may be used; that of the environment always is.

    Raises:
        AccessError: it cannot be a token; the message does not show it.
    """
    if (given := given_tokens()) is not None:
        return check_token(given.civitai) if stored and given.civitai else None
    token = os.environ.get(TOKEN_VARIABLE) or (stored and (_from_keyring() or _from_file()))
    return check_token(token) if token else None


def check_token(token: str) -> str:
    """`token`, stripped.

    Raises:
        AccessError: it is empty, or has a character that no token has.
    """
    token = token.strip()
    if not re.fullmatch(r"[!-~]+", token):  # an HTTP library would quote a malformed header in its error
        raise AccessError("the Civitai token is empty or has blanks in it; copy it anew from civitai.com/user/account")
    return token


def store_civitai_token(token: str) -> str:
    """Store `token` for later runs; returns where, for people."""
    token = check_token(token)
    if _to_keyring(token):
        return "the system's keyring"
    path = _file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # one that is there keeps its mode
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token)
    return str(path)


def _file() -> Path:
    return home() / "civitai-token"


def _from_file() -> str | None:
    path = _file()
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _from_keyring() -> str | None:
    keyring = _keyring()
    if keyring is None:
        return None
    try:
        password = keyring.get_password(_SERVICE, _ACCOUNT)
        return None if password is None else str(password)
    except keyring.errors.KeyringError:
        return None  # a locked or absent keyring holds nothing for us; the file may


def _to_keyring(token: str) -> bool:
    keyring = _keyring()
    if keyring is None:
        return False
    try:
        keyring.set_password(_SERVICE, _ACCOUNT, token)
    except keyring.errors.KeyringError:
        return False  # the caller says where the token went instead
    return True


def _keyring() -> Any:
    """The keyring package, None where it is not installed."""
    try:
        import keyring
        import keyring.errors
    except ImportError:
        return None
    return keyring
