"""Build the page and serve it: `hswq-hub my-repo` on this machine, `python app.py` in a Space."""

import os
from pathlib import Path

import gradio as gr

from hswq_hub.hub.space import PACKAGE
from hswq_hub.jobs.jobs import requirement
from hswq_runtime.errors import HSWQError
from spaces_app.my_repo.login import Login
from spaces_app.my_repo.page import TITLE, MyRepo
from spaces_app.my_repo.visitor import NAMES, Door, OwnMachine
from spaces_app.serving import HERE, calm, options

_WAITING, _SESSIONS = 128, 500


def create_page(door: Door, package: str | None = None) -> gr.Blocks:
    """The page, not yet served. package: what jobs install; None: this version."""
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        MyRepo(door, package)
    page.queue(max_size=_WAITING, api_open=False)
    calm(page._queue)
    return page


def launch_options(door: Door) -> dict:
    """How the page is served, wherever that is."""
    login = {"routes": door.routes, "middleware": door.middleware}
    return options() | {"app_kwargs": login, "footer_links": [], "state_session_capacity": _SESSIONS}


def main(host: str | None = None, port: int | None = None, package: str | None = None) -> None:
    """Serve the page until it is interrupted: to all who sign in where Hugging Face lets them, else to this machine.

    Raises:
        HSWQError: visitors would come who cannot sign in; the token of this machine is not accepted; or jobs could not
            install what they need.
    """
    host = host or os.environ.get("GRADIO_SERVER_NAME") or HERE
    door: Door | None = Login.of()
    if door is None:
        if host not in NAMES:
            raise HSWQError(
                "visitors cannot sign in here: that takes a Space with hf_oauth: true; leave out --host to use the "
                "page on this machine, with its own token"
            )
        door = OwnMachine()
    requirement(package)  # or every visitor would be told when he starts a job
    create_page(door, package).launch(server_name=host, server_port=port, **launch_options(door))


if __name__ == "__main__":
    main(package=Path(__file__).with_name(PACKAGE).read_text(encoding="utf-8").strip())
