"""hswq.json, the record of a published folder, read into types."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hswq_runtime.architectures import ARCHITECTURES, Architecture
from hswq_runtime.errors import FormatError
from hswq_runtime.formats import Format
from hswq_runtime.text import several, shown

from ..common.layout import CONTENTS, EARLIER, RECORD
from ..evaluation.digests import FileDigests
from ..quantization.plan import Plan


@dataclass(frozen=True)
class FileFacts:
    """A published file. sha256, bytes, digests (of all that is in it): None where the record lacks them."""

    file: str
    sha256: str | None = None
    bytes: int | None = None
    digests: FileDigests | None = None


@dataclass(frozen=True)
class Example:
    """A picture that is shown. image: path in the folder. worst: it has the lowest SSIM of all pairs."""

    prompt: str
    seed: int | None = None
    image: str | None = None
    worst: bool = False


@dataclass(frozen=True)
class PublishedRecord:
    """What hswq.json says.

    architecture: with the facts of the variant that `base` names. base: Hub repo of the other components; None: they
    are in the folder. source: facts of the source, see `facts.source_facts`. document: the JSON as it was read.
    """

    name: str
    repo: str
    architecture: Architecture
    base: str | None
    source: Mapping[str, Any]
    recipe: str
    files: Mapping[Format, FileFacts]
    plans: Mapping[Format, Plan]
    examples: tuple[Example, ...]
    licence: str | None = None
    licence_name: str | None = None
    licence_link: str | None = None
    quantized_by: str | None = None
    command: str = ""
    contents: tuple[str, ...] = ()
    earlier: tuple[Mapping[str, Any], ...] = ()
    document: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, folder: Path) -> "PublishedRecord":
        """The record of a published folder.

        Raises:
            FormatError: there is none, or `publish` did not write it.
        """
        if not folder.exists():
            raise FormatError(f"{folder} does not exist")
        try:
            document = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise FormatError(f"{folder} is no folder that `hswq-hub publish` made ({error})") from error
        return cls.from_document(document)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "PublishedRecord":
        """The record of parsed JSON.

        Raises:
            FormatError: a key is missing or has the wrong type; the message names it.
        """
        read = _Reader(document)
        name = read.text("architecture")
        if name not in ARCHITECTURES:
            raise FormatError(f"its record names the unknown architecture {shown(name)!r}")
        repo, base, recipe = read.text("repo"), read.optional("base"), read.mapping("recipe")
        label = str(recipe.get("name", ""))
        return cls(
            name=read.optional("name") or repo,
            repo=repo,
            architecture=ARCHITECTURES[name].with_base(base) if base else ARCHITECTURES[name],
            base=base,
            source=read.mapping("source"),
            recipe=label,
            files={_format(key): _file(facts) for key, facts in read.mapping("files").items()},
            plans={
                _format(key): Plan.from_rows(_format(key), label, rows) for key, rows in read.mapping("layers").items()
            },
            examples=tuple(map(_example, read.items("examples"))),
            licence=read.optional("licence"),
            licence_name=read.optional("licence_name"),
            licence_link=read.optional("licence_link"),
            quantized_by=read.optional("quantized_by"),
            command=read.optional("command") or "",
            contents=tuple(map(str, read.items(CONTENTS, ()))),
            earlier=tuple(read.items(EARLIER, ())),
            document=document,
        )

    def digests_of(self, name: str) -> FileDigests:
        """What is recorded of the contents of the published file `name`.

        Raises:
            FormatError: it is none of the files, or the record is of a release that did not note their contents.
        """
        facts = next((facts for facts in self.files.values() if facts.file == name), None)
        if facts is None:
            names = several([facts.file for facts in self.files.values()])
            raise FormatError(f"the record knows no {shown(name)}; it is of {names}")
        if facts.digests is None:
            raise FormatError(
                f"the record has no digests of the tensors of {shown(name)}; publish the model again, or compare the "
                f"file's SHA-256, which has to be {facts.sha256}"
            )
        return facts.digests


class _Reader:
    """Typed access to the keys of a record."""

    def __init__(self, document: Mapping[str, Any]):
        if not isinstance(document, Mapping):
            raise FormatError("its record is no JSON object")
        self._document = document

    def text(self, key: str) -> str:
        value = self._document.get(key)
        if not isinstance(value, str):
            raise FormatError(f"its record has no text under {key!r}")
        return value

    def optional(self, key: str) -> str | None:
        return None if self._document.get(key) is None else self.text(key)

    def mapping(self, key: str) -> Mapping[str, Any]:
        value = self._document.get(key)
        if not isinstance(value, Mapping):
            raise FormatError(f"its record has no object under {key!r}")
        return value

    def items(self, key: str, default: Sequence[Any] | None = None) -> Sequence[Any]:
        value = self._document.get(key, default)
        if not isinstance(value, (list, tuple)):
            raise FormatError(f"its record has no list under {key!r}")
        return value


def _format(key: str) -> Format:
    try:
        return Format(key)
    except ValueError as error:
        raise FormatError(f"its record names the unknown format {shown(key)!r}") from error


def _file(facts: Any) -> FileFacts:
    match facts:
        case {"file": str(file)}:
            sha256, size = facts.get("sha256"), facts.get("bytes")
            return FileFacts(
                file,
                sha256 if isinstance(sha256, str) else None,
                size if isinstance(size, int) else None,
                FileDigests(_digests(facts, "tensors"), _digests(facts, "metadata")) if "tensors" in facts else None,
            )
    raise FormatError("its record has no name of a file under 'files'")


def _digests(facts: Mapping[str, Any], key: str) -> Mapping[str, str]:
    found = facts.get(key)
    if not isinstance(found, Mapping) or not all(isinstance(digest, str) for digest in found.values()):
        raise FormatError(f"its record has no digests under {key!r} of a file")
    return found


def _example(described: Any) -> Example:
    match described:
        case {"prompt": str(prompt)}:
            seed, image = described.get("seed"), described.get("image")
            example = Example(prompt, worst=bool(described.get("worst")))
            seed = seed if isinstance(seed, int) else None
            return replace(example, seed=seed, image=image if isinstance(image, str) else None)
    raise FormatError("its record has no prompt under 'examples'")
