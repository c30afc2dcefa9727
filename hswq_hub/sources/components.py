"""The other components of a source: those of a local base are published with it, a Hub base is only named."""

from pathlib import Path

from hswq_runtime.checkpoints.locate import MODEL_INDEX, PUBLISHED_SUFFIXES
from hswq_runtime.pipeline import component_folders

from .source import Source


def local_components(source: Source) -> list[Path]:
    """Component folders that go into the published one."""
    return [] if source.hub_base else component_folders(Path(source.base), source.checkpoint.architecture)


def local_files(source: Source) -> list[Path]:
    """All files of those folders that are published."""
    folders = local_components(source)
    return [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file() and _publishable(path)]


def local_bytes(source: Source) -> int:
    """Their size."""
    return sum(path.stat().st_size for path in local_files(source))


def ignore_foreign(folder: str, names: list[str]) -> list[str]:
    """For `shutil.copytree`: what of `folder` stays behind."""
    paths = [Path(folder) / name for name in names]
    return [path.name for path in paths if path.name.startswith(".") or not (path.is_dir() or _publishable(path))]


def base_identity(source: Source) -> str | list[list[str | int]]:
    """What tells this base from another: a Hub repo's name, or name, size and time of each of a folder's files."""
    if source.hub_base is not None:
        return source.hub_base
    base = Path(source.base)
    files = [base / MODEL_INDEX, *local_files(source)]
    return [[str(file.relative_to(base)), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def _publishable(path: Path) -> bool:
    """Weights, configurations and vocabularies; no pickles, caches or anything else that lies about."""
    return path.suffix in PUBLISHED_SUFFIXES and not path.name.startswith(".")
