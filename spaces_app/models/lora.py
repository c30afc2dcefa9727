"""A LoRA that a visitor names: fetched, then applied to a pipeline for the length of a block."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.constants import ENDPOINT
from safetensors import SafetensorError

from hswq_runtime.checkpoints.locate import HubOptions, is_repo_id, locate

from ..request import RequestError
from .remote import check_size

LARGEST = 2 << 30
"""Bytes of a LoRA that is fetched."""
_SUFFIX = ".safetensors"
_FORM = "a LoRA is named as owner/repo/file.safetensors on the Hub"


def find_lora(text: str, *, local: bool) -> Path | None:
    """The file that `text` names; None for an empty text. A path of this machine counts only if `local`.

    It is fetched without anybody's token.

    Raises:
        RequestError: it names nothing that may be opened.
        FormatError: it cannot be fetched.
    """
    if not text:
        return None
    if local and Path(text).is_file():
        if not text.endswith(_SUFFIX):
            raise RequestError("a LoRA has to be a safetensors file: pickles are not opened")
        return Path(text)
    repo, name = "/".join(text.split("/")[:2]), "/".join(text.split("/")[2:])
    if not is_repo_id(repo) or ".." in text.split("/") or not name.endswith(_SUFFIX) or "\\" in text:
        raise RequestError(f"{_FORM}, or as a path" if local else _FORM)
    check_size(repo, [name], LARGEST)
    # As an address, so that it is never taken for a path of this machine.
    return locate(f"{ENDPOINT}/{repo}/resolve/main/{name}", None, None, HubOptions(token=False)).file


@contextmanager
def lora_applied(pipeline, lora: Path | None) -> Iterator[None]:
    """Apply the LoRA to the pipeline for the length of the block; None: nothing to apply.

    Raises:
        RequestError: the file is no LoRA, or none for this model.
    """
    if lora is None:
        yield
        return
    try:
        pipeline.load_lora_weights(str(lora.parent), weight_name=lora.name, use_safetensors=True)
    except (ValueError, KeyError, RuntimeError, SafetensorError, OSError) as error:
        pipeline.unload_lora_weights()
        raise RequestError(f"{lora.name} holds no LoRA that fits this model") from error
    try:
        yield
    finally:
        pipeline.unload_lora_weights()
