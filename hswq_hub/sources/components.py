"""The components besides the denoiser: a local base is published with the model, a Hub base is only named."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hswq_runtime.checkpoints.base import component_configuration, component_folders
from hswq_runtime.checkpoints.configuration import CONFIG, LARGEST
from hswq_runtime.checkpoints.locate import MODEL_INDEX, PUBLISHED_SUFFIXES, HubOptions
from hswq_runtime.text import shown

from .errors import UnsuitableSourceError
from .source import Source

_LEVELS, _CHANNELS, _LAYERS, _SIDES = 8, range(1, 1 << 16), range(1, 65), range(16, 1 << 14)
"""What a VAE can have: levels of resolution, channels of each, residual blocks of each, pixels a side."""


def local_components(source: Source) -> list[Path]:
    """Folders of the components that are published; none if the base is a Hub repo."""
    return [] if source.hub_base else component_folders(Path(source.base), source.checkpoint.architecture)


def local_files(source: Source) -> list[Path]:
    """The files of those folders that are published."""
    folders = local_components(source)
    return [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file() and _publishable(path)]


def local_bytes(source: Source) -> int:
    """Bytes of the files that are published."""
    return sum(path.stat().st_size for path in local_files(source))


def ignore_foreign(folder: str, names: list[str]) -> list[str]:
    """An `ignore` for `shutil.copytree`: the names in `folder` that are not published."""
    paths = [Path(folder) / name for name in names]
    return [path.name for path in paths if path.name.startswith(".") or not (path.is_dir() or _publishable(path))]


def base_identity(source: Source) -> list[object]:
    """What tells a base from others: a Hub repo's name, or [path, bytes, mtime in ns] of each published file of a
    folder; and the configuration that it states for the denoiser."""
    stated = source.checkpoint.stated and source.checkpoint.stated.arguments
    if source.hub_base is not None:
        return [source.hub_base, stated]
    base = Path(source.base)
    files = [base / MODEL_INDEX, *local_files(source)]
    return [[[str(file.relative_to(base)), file.stat().st_size, file.stat().st_mtime_ns] for file in files], stated]


def _publishable(path: Path) -> bool:
    """Whether it is a weight, configuration or vocabulary file; pickles, caches and hidden files are not."""
    return path.suffix in PUBLISHED_SUFFIXES and not path.name.startswith(".")


def check_configurations(repo: str, sizes: Mapping[str, int]) -> None:
    """Check, before one is fetched, that none of a repo's configurations is larger than any is. sizes: bytes by path.

    Raises:
        UnsuitableSourceError: one of them is.
    """
    for path, size in sizes.items():
        if path.rpartition("/")[2] in (CONFIG, MODEL_INDEX) and size > LARGEST:
            raise UnsuitableSourceError(f"{shown(path)} in {repo} is larger than any configuration of a model")


def vae_of(base: str, hub: HubOptions) -> dict[str, Any]:
    """What `base` states of its VAE that forecasts use, as far as it can be true: `sample_size`, `block_out_channels`
    and `layers_per_block`; nothing if it states none, or cannot be reached.

    Raises:
        FormatError: what is there is no configuration.
    """
    found = component_configuration(base, "vae", hub)
    stated = {} if found is None else found.entries
    vae: dict[str, Any] = {}
    match stated.get("block_out_channels"):
        case [*channels] if 0 < len(channels) <= _LEVELS and all(_is_one(value, _CHANNELS) for value in channels):
            vae["block_out_channels"] = list(channels)
    for name, allowed in (("sample_size", _SIDES), ("layers_per_block", _LAYERS)):
        if _is_one(value := stated.get(name), allowed):
            vae[name] = value
    return vae


def _is_one(value: object, allowed: range) -> bool:
    return type(value) is int and value in allowed
