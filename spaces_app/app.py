"""Build the page and serve it: `hswq-hub demo` on this machine, `python app.py` in a Space."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import gradio as gr

from hswq_hub.sources.http.web import LOOPBACK
from hswq_runtime.errors import HSWQError
from spaces_app.comparison.worker import Worker
from spaces_app.models.registry import ModelRegistry
from spaces_app.page.controller import Controller
from spaces_app.page.page import TITLE, Page
from spaces_app.serving import HERE, calm, options

MODELS = "models.txt"
"""Beside a Space's app.py: what it shows, a reference a line."""
_WAITING = 64
_SESSIONS = 100
_HOURLY = (3600, 3600)


def create_demo(
    references: Sequence[str] = ("demo",),
    *,
    original: Path | None = None,
    any_repo: bool = False,
    local: bool = False,
    device: str = "auto",
    dtype: str = "auto",
) -> gr.Blocks:
    """The page, not yet served.

    Args:
        references: what it shows: "demo", folders and Hub repos that `hswq-hub publish` made; the first at once.
        original: the full-precision file of the first, if its record names no place to fetch it from.
        any_repo: visitors may name other Hub repos.
        local: the only visitor sits at this machine, and may name its files.

    Raises:
        HSWQError: the first model cannot be opened, or the device is not there.
    """
    controller = Controller(
        ModelRegistry(references, original=original, any_repo=any_repo, local=local), Worker(device, dtype, local=local)
    )
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=_HOURLY) as demo:
        Page(controller)
    controller.open()
    demo.queue(max_size=_WAITING, api_open=False)  # nobody goes past the queue
    calm(demo._queue)
    return demo


def main(
    references: Sequence[str] = ("demo",),
    *,
    original: Path | None = None,
    any_repo: bool = False,
    host: str | None = None,
    port: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    mcp: bool = False,
) -> None:
    """Serve the page until it is interrupted. `host` and `port` None: as Gradio's environment variables say.

    mcp: its endpoint is a tool for assistants as well (Model Context Protocol); so it is with GRADIO_MCP_SERVER=true.

    Raises:
        HSWQError: as `create_demo`, or what the tool needs is not installed.
    """
    mcp = mcp or os.environ.get("GRADIO_MCP_SERVER", "").lower() == "true"
    if mcp and find_spec("mcp") is None:
        raise HSWQError("a tool for assistants needs the mcp package: pip install 'hswq-hub[demo,mcp]'")
    host = host or os.environ.get("GRADIO_SERVER_NAME") or HERE
    shared = os.environ.get("GRADIO_SHARE", "").lower() == "true"
    local = host in LOOPBACK and not shared
    demo = create_demo(references, original=original, any_repo=any_repo, local=local, device=device, dtype=dtype)
    demo.launch(server_name=host, server_port=port, **launch_options(mcp=mcp))


def launch_options(*, mcp: bool = False) -> dict:
    """How the page is served, wherever that is."""
    own = {"mcp_server": mcp, "footer_links": ["api"], "state_session_capacity": _SESSIONS}
    return options() | own


if __name__ == "__main__":
    main((Path(__file__).with_name(MODELS)).read_text(encoding="utf-8").split())
