"""What a source is, and how a reference becomes one."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

from hswq_runtime.checkpoint import Checkpoint
from hswq_runtime.errors import HSWQError
from hswq_runtime.pipeline import check_components, find_base

from ..progress import progress

DEMO = "demo"


class UnknownReferenceError(HSWQError):
    """The reference names nothing that can be quantized."""


@dataclass(frozen=True)
class Prompts:
    """Two lists without a prompt in common: one to calibrate with, one to measure with."""

    calibration: tuple[str, ...]
    evaluation: tuple[str, ...]

    @classmethod
    def read(cls, folder) -> "Prompts":
        """`calibration.txt` and `evaluation.txt` of a folder, one prompt a line, empty lines left out."""
        return cls(*(_lines(folder / f"{name}.txt") for name in ("calibration", "evaluation")))


@dataclass(frozen=True)
class Source:
    """A full-precision checkpoint on this disk, and all that is known of where it came from."""

    name: str
    """What published files are named after: `<name>-hswq-v1.safetensors`."""
    path: Path
    base: str
    """diffusers folder or Hub repo of the other components."""
    origin: str
    """One phrase for the card: where the file came from, without a path of this machine."""
    licence: str | None
    """Hub licence id, None if nobody said."""
    prompts: Prompts

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.path)

    @cached_property
    def sha256(self) -> str:
        """Hex digest of the whole file."""
        return file_sha256(self.path)

    def check_components(self) -> None:
        """Check that the base has all components besides the denoiser.

        Raises:
            ComponentError: names what is missing.
        """
        check_components(self.checkpoint.architecture, self.base)

    @property
    def hub_base(self) -> str | None:
        """The Hub repo of the other components; None if they come from a folder of this machine."""
        return None if Path(self.base).is_dir() else self.base


def resolve(reference: str, base: str | None = None, licence: str | None = None) -> Source:
    """The source that `reference` names. Only its header is read.

    Args:
        reference: "demo" for the bundled model, or the path of a safetensors file.
        base: diffusers folder or Hub repo with the other components; None: the folder of the file if it is
            a diffusers folder, else the base repo of the architecture.
        licence: Hub licence id of a local file, if it is known.

    Raises:
        UnknownReferenceError: neither of those.
        FormatError: the file is not a complete safetensors file, or does not fit its architecture.
        UnknownArchitectureError: its keys match no architecture that we know.
        AlreadyQuantizedError: it is not full precision.
    """
    if reference == DEMO:
        data = files("hswq_hub") / "demo_model"
        path, base = Path(str(data / "demo.safetensors")), base or str(data / "components")
        origin, prompts = "the demo model that ships with hswq-hub", Prompts.read(data / "prompts")
        licence = "apache-2.0"
    else:
        path = Path(reference)
        if not path.is_file():
            raise UnknownReferenceError(
                f"{reference!r} is neither a file nor 'demo'; give the path of a safetensors checkpoint"
            )
        origin, prompts = f"the local file {path.name}", Prompts.read(files("hswq_hub") / "prompts")
    checkpoint = Checkpoint(path)
    checkpoint.require_full_precision()
    checkpoint.check_fits(checkpoint.empty_model())
    base = find_base(checkpoint, base)
    return Source(name=path.stem, path=path, base=base, origin=origin, licence=licence, prompts=prompts)


def file_sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces of 16 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file, progress(total=path.stat().st_size, desc=f"sha256 {path.name}", unit="B") as bar:
        while piece := file.read(1 << 24):
            digest.update(piece)
            bar.update(len(piece))
    return digest.hexdigest()


def _lines(file) -> tuple[str, ...]:
    return tuple(line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip())
