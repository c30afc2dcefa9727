"""`demo`: the comparison page on this machine."""

from pathlib import Path

import click

from .options import DEVICE, DTYPE, EXISTING_FILE
from .terminal import quiet


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
