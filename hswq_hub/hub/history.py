"""Versions of a published model: their identity, their tags, and what is kept of earlier ones.

A version is identified by tool, recipe, source, the bytes of its files and the measured figures. Its tag holds a digest
of these, so a tag never moves: another version has another tag.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hswq_runtime.errors import FormatError
from hswq_runtime.formats import Format

from ..common.identity import fingerprint
from ..common.layout import EARLIER
from ..common.text import plain

FIGURES = ("ssim_mean", "ssim_worst", "psnr_mean", "latent_mse_mean")
_MOST = 100


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FormatError: the file cannot be read, or holds no object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path} cannot be read ({type(error).__name__})") from error
    if not isinstance(document, dict):
        raise FormatError(f"{path} holds no object")
    return document


def figures(record: dict[str, Any], metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The measured means of each file of the record, by format."""
    by_label = {variant["label"]: variant for variant in metrics["variants"]}
    return {
        version: {name: by_label[Format(version).label][name] for name in FIGURES}
        for version in record["files"]
        if Format(version).label in by_label
    }


def version_tag(record: dict[str, Any], metrics: dict[str, Any]) -> str:
    """`<recipe>-<version of the tool>-<digest>`. The digest covers the results, not times or hardware."""
    tool = record["tool"].rpartition(" ")[2]
    made_of = [
        record["tool"],
        record["recipe"],
        record["source"]["sha256"],
        {version: file["sha256"] for version, file in record["files"].items()},
        figures(record, metrics),
    ]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{record['recipe']['name']}-{tool}-{fingerprint(made_of)}")


def tag_of(published: dict[str, Any] | None, metrics: dict[str, Any] | None) -> str | None:
    """The tag of the version on the Hub; None if that is not ours."""
    if published is None or metrics is None:
        return None
    found = _if_sound(_summary, published, metrics)
    return None if found is None else str(found["tag"])


def title(record: dict[str, Any], metrics: dict[str, Any]) -> str:
    """Title of the commit: the recipe and the measured figures."""
    measured = ", ".join(
        f"{Format(version).label} SSIM {found['ssim_mean']:.4f}" for version, found in figures(record, metrics).items()
    )
    pairs = max(len(variant["pairs"]) for variant in metrics["variants"])
    return f"HSWQ, recipe {record['recipe']['name']}: {measured} ({pairs} pairs)"


def description(record: dict[str, Any], metrics: dict[str, Any]) -> str:
    """Description of the commit: tool, source, command, figures."""
    lines = [f"Version {version_tag(record, metrics)}, made by {record['tool']} from {record['source']['origin']}."]
    if record.get("command"):
        lines.append(f"    {record['command']}")
    for version, found in figures(record, metrics).items():
        psnr = "∞" if found["psnr_mean"] is None else f"{found['psnr_mean']:.1f} dB"
        lines.append(
            f"- {Format(version).label}: SSIM mean {found['ssim_mean']:.4f}, worst {found['ssim_worst']:.4f}, "
            f"PSNR {psnr}, latent MSE {found['latent_mse_mean']:.2e}"
        )
    return "\n".join(lines)


def earlier_versions(
    record: dict[str, Any],
    metrics: dict[str, Any],
    published: dict[str, Any] | None,
    published_metrics: dict[str, Any] | None,
) -> list[dict[str, Any]]:
    """The entries for earlier versions in a record, the latest first: those that the published record lists, and the
    published version itself unless it is this one. Malformed entries are left out.

    Args:
        record, metrics: of the folder that is uploaded.
        published, published_metrics: of what is on the Hub; None: nothing of ours.
    """
    if published is None:
        return []
    listed = published.get(EARLIER)
    candidates = [_if_sound(_checked, entry) for entry in (listed if isinstance(listed, list) else [])]
    if published_metrics is not None:
        candidates.insert(0, _if_sound(_summary, published, published_metrics))
    found = [entry for entry in candidates if entry is not None]
    own = version_tag(record, metrics)
    by_tag = {entry["tag"]: entry for entry in reversed(found) if entry["tag"] != own}
    return list(reversed(by_tag.values()))[:_MOST]


def mark_lasting(record: dict[str, Any], earlier: list[dict[str, Any]], present: Mapping[str, str | None]) -> None:
    """Mark each file of earlier versions that stays on the Hub beside this one: of a format that this version lacks,
    made from the same source, and present. present: SHA-256 of the files on the Hub, by name."""
    for entry in earlier:
        for version, file in entry["files"].items():
            wanted = version not in record["files"] and entry["source"] == record["source"]["sha256"]
            file["here"] = wanted and present.get(file["file"]) == file["sha256"]


def _if_sound(make: Callable[..., dict[str, Any]], *documents: Any) -> dict[str, Any] | None:
    """`make(*documents)`; None if the documents, which come from the Hub, are malformed."""
    try:
        return make(*documents)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _summary(record: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    """The entry for a version, from its own record and metrics."""
    protocol = metrics["protocol"]
    return _checked({
        "tag": version_tag(record, metrics),
        "tool": record["tool"],
        "recipe": record["recipe"]["name"],
        "command": record.get("command") or "",
        "source": record["source"]["sha256"],
        "origin": record["source"]["origin"],
        "pairs": max(len(variant["pairs"]) for variant in metrics["variants"]),
        "dtype": protocol["dtype"],
        "hardware": protocol["hardware"],
        "files": {
            version: {"file": file["file"], "sha256": file["sha256"], "bytes": file["bytes"]}
            | figures(record, metrics)[version]
            for version, file in record["files"].items()
        },
    })  # fmt: skip


def _checked(entry: dict[str, Any]) -> dict[str, Any]:
    """`entry` reduced to our fields, types checked, since others may write to the repo.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: it is malformed.
    """
    texts = {name: _text(entry[name]) for name in ("tag", "tool", "recipe", "command", "source", "origin", "dtype")}
    if not re.fullmatch(r"[A-Za-z0-9._-]+", texts["tag"]):
        raise ValueError(texts["tag"])
    files = {}
    for version, file in entry["files"].items():
        name = _text(file["file"])
        if not re.fullmatch(r"[A-Za-z0-9._-]+\.safetensors", name):
            raise ValueError(name)
        facts = {"file": name, "sha256": _text(file["sha256"]), "bytes": int(file["bytes"])}
        files[Format(version).value] = facts | {figure: _figure(figure, file[figure]) for figure in FIGURES}
    return texts | {"pairs": int(entry["pairs"]), "hardware": _text(entry["hardware"]), "files": files}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return plain(value, 1000) or ""


def _figure(name: str, value: object) -> float | None:
    if value is None and name == "psnr_mean":
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise TypeError("not a figure")
    return float(value)
