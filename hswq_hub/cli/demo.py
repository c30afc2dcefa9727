"""`demo` and `my-repo`: the pages, on this machine or as a Space."""

from pathlib import Path

import click

from .options import DEVICE, DTYPE, EXISTING_FILE
from .terminal import quiet, tell


@click.command()
@click.argument("references", metavar="[REPO|FOLDER]...", nargs=-1)
@click.option("--original", type=EXISTING_FILE, help="The full-precision file, if only you have it.")
@click.option("--allow-any-repo", "any_repo", is_flag=True, help="Visitors may name other Hub repos.")
@click.option("--host", help="Where to listen; 0.0.0.0 is everywhere.  [default: $GRADIO_SERVER_NAME, or 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), help="[default: $GRADIO_SERVER_PORT, or from 7860 on]")
@click.option("--mcp", is_flag=True, help="Offer the comparison to assistants as a tool (Model Context Protocol).")
@DEVICE
@DTYPE
def demo(
    references: tuple[str, ...],
    original: Path | None,
    any_repo: bool,
    host: str | None,
    port: int | None,
    mcp: bool,
    device: str,
    dtype: str,
) -> None:
    """Show in a browser what quantization did: the demo model, or models that `publish` made.

    \b
    hswq-hub demo
    hswq-hub demo hswq-published/demo-hswq
    hswq-hub demo owner/name --host 0.0.0.0
    """
    try:
        from spaces_app.app import main
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise click.ClickException("the page needs gradio: pip install 'hswq-hub[demo]'") from error

    quiet()
    main(
        references or ("demo",),
        original=original,
        any_repo=any_repo,
        host=host,
        port=port,
        mcp=mcp,
        device=device,
        dtype=dtype,
    )


@click.command("my-repo")
@click.option("--host", help="Where to listen.  [default: $GRADIO_SERVER_NAME, or 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), help="[default: $GRADIO_SERVER_PORT, or from 7860 on]")
@click.option("--package", metavar="REQUIREMENT", help="What the jobs install.  [default: this version]")
@click.option("--space", metavar="OWNER/NAME", help="Make or update a Space with the page, and serve nothing here.")
@click.option("--private/--public", default=None, help="Who may see a new Space.  [default: the account's]")
def my_repo(host: str | None, port: int | None, package: str | None, space: str | None, private: bool | None) -> None:
    """Serve a page that publishes: a link in, a job on the visitor's own account, a repo of his out.

    On this machine it uses the token of `hf auth login`. In a Space visitors sign in, each with an account of his own.

    \b
    hswq-hub my-repo
    hswq-hub my-repo --space alice/hswq-my-repo
    """
    try:
        from spaces_app.my_repo.app import main
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "authlib", "itsdangerous", "httpx"):
            raise
        raise click.ClickException("the page needs more packages: pip install 'hswq-hub[demo,oauth]'") from error

    quiet()
    if space is None:
        main(host, port, package)
        return
    from importlib.resources import files

    from ..hub.space import check_space, deploy_space
    from ..jobs.jobs import requirement

    installed = requirement(package)
    check_space(space)
    page = Path(str(files("spaces_app.my_repo")))
    tell(deploy_space(space, None, page, package=installed, private=private))
