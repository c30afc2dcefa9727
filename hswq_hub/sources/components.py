"""The components besides the denoiser: a local base is published with the model, a Hub base is only named."""

from pathlib import Path

from hswq_runtime.checkpoints.base import component_folders
from hswq_runtime.checkpoints.locate import MODEL_INDEX, PUBLISHED_SUFFIXES

from .source import Source


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
