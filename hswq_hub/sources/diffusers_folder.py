"""A denoiser as diffusers stores it (config.json beside one file or several shards), made into one file.

All later steps work on one file, so shards are merged: the same tensors under the same keys, byte for byte, with the
configuration in the header's metadata. Keys stay in diffusers' layout, also in the quantized file.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from hswq_runtime.architectures import ARCHITECTURES, Architecture, recognise_class
from hswq_runtime.checkpoints.configuration import CONFIG, Configuration
from hswq_runtime.checkpoints.locate import MODEL_INDEX
from hswq_runtime.errors import FormatError
from hswq_runtime.formats import Metadata

from ..common.files import atomic_file, file_sha256
from ..common.progress import progress
from ..common.targets import check_room
from .errors import UnsuitableSourceError
from .http import cache

WEIGHTS = ".safetensors"
DENOISERS = frozenset(row.component for row in ARCHITECTURES.values()) | {"transformer", "unet"}
OTHER_COMPONENTS = (
    "text_encoder", "vae", "image_encoder", "safety_checker", "controlnet", "feature_extractor", "lora"
)  # fmt: skip
"""Prefixes of folders that hold other models' weights."""
STEM = "diffusion_pytorch_model"
"""Prefix of the weight files that diffusers writes."""
_SHARD = re.compile(r".*-\d{5}-of-\d{5}\.safetensors")
_COPY = 1 << 24


def is_shard(name: str) -> bool:
    """Whether a file name is that of a shard."""
    return _SHARD.fullmatch(name) is not None


def weights_of(names: list[str]) -> list[str]:
    """The weight files among the names in a component's folder; [] if it is not clear which.

    Files with a variant, as `.fp16.`, are not taken. A single file comes before shards.
    """
    if f"{STEM}{WEIGHTS}" in names:
        return [f"{STEM}{WEIGHTS}"]
    shards = sorted(name for name in names if re.fullmatch(rf"{STEM}-\d{{5}}-of-\d{{5}}\.safetensors", name))
    if shards:
        return shards
    others = [name for name in names if name.endswith(WEIGHTS) and "/" not in name]
    return others if len(others) == 1 else []


def find_denoiser(folder: Path) -> Path:
    """The denoiser's folder in a diffusers folder, or the folder itself if it is one.

    Raises:
        UnsuitableSourceError: there is none.
    """
    for place in (folder, *(folder / name for name in sorted(DENOISERS))):
        if (place / CONFIG).is_file() and weights_of([path.name for path in place.iterdir()]):
            return place
    raise UnsuitableSourceError(
        f"{folder} is no diffusers folder with safetensors weights: it has neither {CONFIG} nor a transformer/ or "
        "unet/ that has"
    )


def whole_folder(place: Path) -> str | None:
    """The diffusers folder that holds the denoiser in `place`, None if there is none."""
    return next((str(folder) for folder in (place, place.parent) if (folder / MODEL_INDEX).is_file()), None)


def join(config: Path, weights: list[Path], name: str, *, verify: bool = False) -> tuple[Path, str]:
    """Merge shards into `<name>.safetensors` in the cache, unless it is there already.

    Args:
        config: the component's config.json.
        weights: its files, all of them.
        name: the stem of the file's name.
        verify: read a file that is in the cache again, in full.

    Returns:
        The file and its SHA-256.

    Raises:
        FormatError: a file is not a complete safetensors file, a shard is missing, or two hold the same tensor.
        TargetError: the disk has no room.
    """
    text = _read_config(config)
    key = _key(text, weights)
    with cache.locked(key, name):
        known = cache.recall(key)
        if known and (found := cache.find(known, verify=verify)):
            return found, known
        check_room(cache.folder(), sum(path.stat().st_size for path in weights))
        path = cache.partial(key)
        _write(path, weights, {Metadata.CONFIG.value: text})
        digest = file_sha256(path)
        cache.remember(key, digest)
        return cache.add(path, f"{name}{WEIGHTS}", digest), digest


def joined_sha256(config: Path, weights: list[Path]) -> str | None:
    """SHA-256 of the file that :func:`join` made of just these files; None if it never did. No weight is read."""
    return cache.recall(_key(_read_config(config), weights))


def joined_header(config: Path, weights: list[Path]) -> bytes:
    """The header of the file that :func:`join` would write, its eight-byte length included; no weight is read.

    Raises:
        FormatError: see there.
    """
    return _joined(weights, {Metadata.CONFIG.value: _read_config(config)})[0]


def _key(config: str, weights: list[Path]) -> str:
    """What a joined file is known by: its configuration, and where its parts are, their sizes and times."""
    states = [(str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns) for path in weights]
    return hashlib.sha256(json.dumps([config, states]).encode()).hexdigest()


def architecture_of(config: Path) -> Architecture:
    """The architecture of a config.json, known before any weights are fetched.

    Raises:
        FormatError: it is no configuration.
        UnknownArchitectureError: its class is not a known one.
    """
    return recognise_class(json.loads(_read_config(config)))


def _read_config(path: Path) -> str:
    """The configuration as canonical JSON."""
    return Configuration.read(path, str(path)).text


def _write(path: Path, weights: list[Path], metadata: dict[str, str]) -> None:
    """Write one header, then the tensors of all `weights` in their order."""
    header, bodies = _joined(weights, metadata)
    size = sum(file.stat().st_size - start for file, start in bodies)
    with atomic_file(path) as out, progress(total=size, desc=f"join {path.name}", unit="B") as bar:
        out.write(header)
        for file, start in bodies:
            with file.open("rb") as body:
                body.seek(start)
                while piece := body.read(_COPY):
                    out.write(piece)
                    bar.update(len(piece))


def _joined(weights: list[Path], metadata: dict[str, str]) -> tuple[bytes, list[tuple[Path, int]]]:
    """The merged header, and for each file the offset of its first tensor in bytes."""
    total = len(weights)
    if match := re.search(r"-of-(\d{5})\.", weights[0].name):
        total = int(match[1])
    if total != len(weights):
        raise FormatError(f"{weights[0].parent} holds {len(weights)} of {total} shards; get the others")
    entries: dict[str, Any] = {"__metadata__": metadata}
    bodies, offset = [], 0
    for file in weights:
        start, header = _header(file)
        tensors = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
        for name, entry in tensors:
            if name in entries:
                raise FormatError(f"{file} holds {name} once more; the shards do not belong together")
            begin, end = entry["data_offsets"]
            entries[name] = entry | {"data_offsets": [offset + begin, offset + end]}
        bodies.append((file, start))
        offset += file.stat().st_size - start
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, bodies


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """Offset of the first tensor in bytes, and the header's entry of each tensor."""
    try:
        with safe_open(str(path), framework="pt"):  # the library checks that the offsets are in order and in the file
            pass
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} is not a complete safetensors file ({error})") from error
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return 8 + size, header
