"""The components that a full checkpoint holds besides its denoiser: text encoders and VAE.

diffusers' single-file loading creates them; their classes and configurations come from the base.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import torch

from ..errors import ComponentError
from .checkpoint import Checkpoint
from .locate import MODEL_INDEX

_LIBRARIES = ("diffusers", "transformers")


def load_bundled(
    checkpoint: Checkpoint, base: Path, names: Iterable[str], dtype: torch.dtype
) -> dict[str, torch.nn.Module]:
    """The components `names` of `checkpoint` by name, on the CPU.

    Args:
        base: diffusers folder with the configuration of each component.
        dtype: dtype of their weights.

    Raises:
        ComponentError: the file lacks tensors of a component, or the base names no class for it.
    """
    index = json.loads((base / MODEL_INDEX).read_text(encoding="utf-8"))
    return {name: _load(checkpoint, base, name, index.get(name), dtype) for name in sorted(names)}


def _load(
    checkpoint: Checkpoint, base: Path, name: str, entry: list[str] | None, dtype: torch.dtype
) -> torch.nn.Module:
    from diffusers import pipelines
    from diffusers.loaders.single_file import load_single_file_sub_model
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    library, class_name = entry or (None, None)
    if library not in _LIBRARIES:
        raise ComponentError(f"{base} names no class of diffusers or transformers as its {name}")
    here = f"the {name} of {checkpoint.path}"
    # diffusers recognises SDXL's first text encoder by the second, so it gets all of them.
    starts = tuple(checkpoint.architecture.bundled.values())
    stored = {key: checkpoint.tensor(key) for key in checkpoint.tensors if key.startswith(starts)}
    try:
        component: torch.nn.Module = load_single_file_sub_model(
            library_name=library,
            class_name=class_name,
            name=name,
            checkpoint=stored,
            pipelines=pipelines,
            is_pipeline_module=False,
            cached_model_config_path=str(base),
            local_files_only=True,
            torch_dtype=dtype,
        )
    except NotImplementedError as error:  # a meta tensor that was not filled cannot be moved
        raise ComponentError(f"{here} lacks some of its tensors; it does not fit {base}") from error
    except (SingleFileComponentError, KeyError, RuntimeError, TypeError) as error:
        raise ComponentError(f"{here} does not fit {base}: {error}") from error
    missing = [key for key, tensor in component.state_dict().items() if tensor.is_meta]
    if missing:
        raise ComponentError(f"{here} lacks {', '.join(missing)}; it does not fit {base}")
    return component
