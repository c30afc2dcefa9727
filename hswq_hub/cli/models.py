"""`inspect`, `pull`, `models`, `login` and `cache`: models, before anything is made of them, and what is kept."""

import click

from ..settings import SourceSettings
from .groups import takes
from .options import CIVITAI_ENDPOINT, DEVICE, SOURCE
from .terminal import chooser, quiet, tell

PRUNE_DAYS = 30.0


@click.command()
@click.argument("reference")
@CIVITAI_ENDPOINT
@DEVICE
def inspect(reference: str, civitai_endpoint: str | None, device: str) -> None:
    """Say what a checkpoint is and what quantizing it would take, from its header alone.

    \b
    hswq-hub inspect model.safetensors
    hswq-hub inspect 'https://civitai.com/models/2242173?modelVersionId=2774410'
    """
    from ..workflow.inspect import inspect

    for line in inspect(reference, civitai_endpoint).lines(device):
        tell(line)


@click.command()
@click.argument("reference")
@takes(source=SOURCE)
@click.option("--dry-run", is_flag=True, help="Only say what would be fetched.")
def pull(reference: str, source: SourceSettings, dry_run: bool) -> None:
    """Fetch a model and everything it needs, without quantizing it.

    \b
    hswq-hub pull harukiMIX_zit2603 --dry-run
    hswq-hub pull https://huggingface.co/owner/repo/blob/main/model.safetensors
    """
    from ..sources.find import find
    from .tables import found_lines

    quiet()
    found = find(reference, source, chooser())
    if dry_run:
        tell("\n".join(found_lines(found)))
        return
    fetched = found.fetch()
    fetched.fetch_components()
    tell(f"{fetched.path}\nSHA-256 {fetched.sha256}\nother components: {fetched.base}")


@click.command()
def models() -> None:
    """List the catalog: names that stand for a model, and the figures that upstream reported by its own protocol.

    \b
    hswq-hub models
    """
    from ..common.text import text_table
    from ..sources.catalog import catalog
    from .tables import CATALOG_HEADINGS, catalog_table

    tell(text_table(CATALOG_HEADINGS, catalog_table(catalog().values())))


@click.group()
def cache() -> None:
    """Look at what is kept on this machine, downloads and products of steps, or make room."""


@cache.command("list")
def list_() -> None:
    """List the downloaded models, and what was made of each model.

    \b
    hswq-hub cache list
    """
    from ..common.home import home
    from ..workflow.collect import kept
    from .tables import kept_lines

    tell("\n".join([str(home()), *kept_lines(kept())]))


@cache.command()
@click.option("--older-than", type=click.FloatRange(0), default=PRUNE_DAYS, show_default=True, help="Days without use.")
def prune(older_than: float) -> None:
    """Remove what was not used for some time, and products of steps that no folder needs any more.

    Such products were made with other settings, or by another version of the code. What a run is using stays.

    \b
    hswq-hub cache prune --older-than 0
    """
    from ..workflow.collect import prune
    from .tables import kept_lines

    tell("\n".join(["removed:", *kept_lines(prune(older_than))]))


@click.command()
@click.argument("host", type=click.Choice(["civitai"]))
@CIVITAI_ENDPOINT
def login(host: str, civitai_endpoint: str | None) -> None:
    """Keep a token for later runs: in the keyring, or in a file that only you can read.

    For Hugging Face there is `hf auth login`.

    \b
    hswq-hub login civitai
    """
    from ..sources.civitai import log_in

    token = click.prompt("Token", hide_input=True, err=True)
    tell(log_in(token, civitai_endpoint))
