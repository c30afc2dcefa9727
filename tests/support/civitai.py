"""What tests of Civitai ask of a `CivitaiServer`."""

from hswq_hub.settings import SourceSettings
from hswq_hub.sources.find import find, resolve
from hswq_hub.sources.http import cache
from support.civitai_server import MODEL, VERSION

REFERENCE = f"civitai:{MODEL}@{VERSION}"


def locate(reference: str, endpoint: str):
    """What the API at `endpoint` lists of `reference`."""
    return find(reference, SourceSettings(civitai_endpoint=endpoint)).listing


def pull(server, reference=REFERENCE, **options):
    return resolve(reference, civitai_endpoint=server.url, **options)


def nothing_kept(server) -> bool:
    return cache.contents() == []
