"""A base: what has the other components of a checkpoint, and states the configuration of its denoiser."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..architectures import Architecture
from ..errors import ComponentError, FormatError
from ..formats import Metadata
from ..text import address, shown
from .checkpoint import Checkpoint
from .configuration import CONFIG, Configuration
from .locate import MODEL_INDEX, HubOptions, fetch_components, is_repo_id

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def find_base(checkpoint: Checkpoint, base: str | Path | None = None) -> str:
    """The folder or repo of the other components of `checkpoint`: see `base` of :meth:`HSWQPipeline.from_pretrained`.

    Raises:
        FormatError: the file's header names a base that is no Hub repo.
    """
    if base is not None:
        return str(base)
    if (checkpoint.path.parent / MODEL_INDEX).is_file():
        return str(checkpoint.path.parent)
    named = checkpoint.metadata.get(Metadata.BASE.value)
    if named is None:
        return checkpoint.architecture.base_repo
    if not is_repo_id(named):  # an untrusted file must not choose a folder of this machine
        raise FormatError(
            f"the header of {checkpoint.path} names the base {shown(named)!r}, which is no Hub repo; pass base"
        )
    return named


def configured(checkpoint: Checkpoint, *places: str | Path, hub: HubOptions | None = None) -> Checkpoint:
    """`checkpoint` with the configuration that the first of `places` has for its denoiser, if its header has none.

    Args:
        places: diffusers folders and Hub repos. One that cannot be reached states nothing.

    Raises:
        FormatError: what is there is no configuration, or one of another class.
    """
    if checkpoint.stated is not None:
        return checkpoint
    for place in dict.fromkeys(map(str, places)):
        stated = component_configuration(place, checkpoint.architecture.component, hub)
        if stated is not None:
            return Checkpoint(checkpoint.path, stated=stated, unfold=checkpoint.unfold)
    return checkpoint


def component_configuration(place: str | Path, component: str, hub: HubOptions | None = None) -> Configuration | None:
    """What a diffusers folder or Hub repo states of a component; None if it states nothing, or cannot be reached.

    Raises:
        FormatError: what is there is no configuration.
    """
    folder = _component_folder(str(place), component, hub or HubOptions())
    if folder is None or not (folder / CONFIG).is_file():
        return None
    return Configuration.read(folder / CONFIG, f"{place}/{component}/{CONFIG}")


def _component_folder(place: str, component: str, hub: HubOptions) -> Path | None:
    """The folder of one of a place's components, of a Hub repo without weights; None if the repo cannot be had."""
    if Path(place).is_dir():
        return Path(place) / component
    if not is_repo_id(place):
        return None
    with suppress(FormatError):
        return fetch_components(place, (), hub, without_weights=[component]) / component
    return None


def check_components(
    checkpoint: Checkpoint, base: str, given: Iterable[str] = (), hub: HubOptions | None = None
) -> None:
    """Check that `base` has all components of the pipeline but the denoiser and those `given`.

    This is quick: of a Hub repo only the index is read. Of a component that the checkpoint itself holds the base needs
    the configuration.

    Raises:
        ComponentError: a component is missing; the message names all that are.
    """
    advice = "pass a diffusers folder or a Hub repo that has it as base"
    folder = Path(base) if Path(base).is_dir() else None
    index = _fetch_index(base, hub or HubOptions()) if folder is None else _read_index(folder)
    wanted = _component_names(checkpoint.architecture) - {*given}
    missing = [name for name in wanted if not _is_component(index.get(name))]
    if folder is not None:
        missing += [name for name in wanted - {*missing} if not _has_files(folder / name)]
    if missing:
        raise ComponentError(f"{base} lacks {', '.join(sorted(missing))}; {advice}")


def component_folders(base: Path, architecture: Architecture) -> list[Path]:
    """The folders of the components in a checked local `base`, without the denoiser's."""
    return sorted(base / name for name in _component_names(architecture) if (base / name).is_dir())


def _component_names(architecture: Architecture) -> set[str]:
    """The components that the pipeline requires, without the denoiser. Names from a file are never used as paths."""
    parameters = inspect.signature(pipeline_class(architecture).__init__).parameters.values()
    required = {parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty}
    return required - {"self", architecture.component, *architecture.left_out}


def pipeline_class(architecture: Architecture) -> type[DiffusionPipeline]:
    """The diffusers class of the architecture's pipeline."""
    import diffusers

    found: type[DiffusionPipeline] = getattr(diffusers, architecture.pipeline_class)
    return found


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / MODEL_INDEX
    if not path.is_file():
        raise ComponentError(f"{folder} has no {MODEL_INDEX}; pass a diffusers folder or a Hub repo as base")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ComponentError(f"{path} is not JSON") from error
    if not isinstance(index, dict):
        raise ComponentError(f"{path} is not a diffusers model index")
    return index


def _fetch_index(base: str, hub: HubOptions) -> dict[str, Any]:
    if not is_repo_id(base):
        raise ComponentError(f"{address(base)} is neither a folder here nor a Hub repo; pass one of them as base")
    try:
        return _read_index(fetch_components(base, (), hub))
    except FormatError as error:
        raise ComponentError(f"{error}") from error


def _is_component(entry: object) -> bool:
    return isinstance(entry, (list, tuple)) and len(entry) == 2 and None not in entry


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def fetch_base(checkpoint: Checkpoint, base: str, given: Iterable[str] = (), hub: HubOptions | None = None) -> str:
    """`base` as a folder on this disk.

    Of a Hub repo, all components are fetched but the denoiser and those `given`; of a component that the checkpoint
    itself holds, only the configuration.

    Raises:
        FormatError: the repo cannot be reached.
    """
    return base if Path(base).is_dir() else str(fetch_but_denoiser(checkpoint, base, given, hub or HubOptions()))


def fetch_but_denoiser(checkpoint: Checkpoint, repo: str, given: Iterable[str], hub: HubOptions) -> Path:
    """The index and the other components of a Hub repo, as :func:`fetch_base` says."""
    names = _component_names(checkpoint.architecture) - {*given}
    return fetch_components(repo, names - checkpoint.bundled, hub, without_weights=names & checkpoint.bundled)
