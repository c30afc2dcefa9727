"""A lazy view of a safetensors checkpoint: what it stores, and the diffusers modules behind each tensor.

Opening reads the header alone; a tensor's bytes are read when it is asked for. `mapping.py` finds which diffusers
parameter a stored tensor becomes.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from .. import formats
from ..architectures import ARCHITECTURES, OTHER_COMPONENTS, Architecture, of_class, recognise, recognise_class
from ..errors import AlreadyQuantizedError, FormatError, UnknownArchitectureError
from ..layers.fp8 import FP8
from .fit import misfits
from .mapping import Piece, gather_scale, row_count, trace, untouched

DTYPE_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E5M2", formats.DTYPE_FP8), 1),
}
"""Bytes of one value, by safetensors' names."""

_MAPPED = 1 << 29
"""Bytes that are given from one mapping of the file."""


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor: its safetensors dtype name and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def values(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def nbytes(self) -> int:
        return self.values * DTYPE_BYTES[self.dtype]


_TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Checkpoint:
    """The denoiser of one safetensors file, with its architecture found out.

    Attributes:
        path: the file.
        metadata: the header's strings, {} if it has none.
        tensors: `TensorInfo` of every tensor in the file, in the order of its bytes.
        prefix: what the denoiser's keys begin with.
        format: what the metadata names, or None.

    Raises:
        FormatError: not a safetensors file, or a truncated or damaged one.
        UnknownArchitectureError: the keys match no known architecture.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FormatError(f"{self.path} is not a file")
        try:
            self._file = safe_open(str(self.path), framework="pt")
        except (SafetensorError, OSError) as error:
            raise FormatError(f"{self.path} is not a complete safetensors file ({error})") from error
        self._given = 0
        self.metadata = self._file.metadata() or {}
        self.tensors = {key: self._info(key) for key in self._file.offset_keys()}
        self._stored_config = formats.config_of(self.metadata)
        try:
            self._family, self.prefix = recognise_header(self.tensors, self.metadata)
        except UnknownArchitectureError as error:
            raise UnknownArchitectureError(f"{self.path}: {error}") from None
        self.format = formats.version_of(self.metadata)
        formats.check_metadata(self.metadata)

    @cached_property
    def architecture(self) -> Architecture:
        """The row of facts that fits the keys, and the shapes where several rows have the same keys.

        Raises:
            FormatError: the configuration cannot be told from the shapes, or no row fits it.
        """
        if all(row is self._family for row in ARCHITECTURES.values() if row.model_class == self._family.model_class):
            return self._family
        found = of_class(self._family.model_class, self.config)
        if found is None:
            raise FormatError(
                f"{self.path} is a {self._family.model_class}, but none of the models known: {self.config}"
            )
        return found

    @property
    def has_diffusers_layout(self) -> bool:
        """Whether the tensors have the names of diffusers' parameters instead of those of the original layout."""
        return self._stored_config is not None

    def _info(self, key: str) -> TensorInfo:
        view = self._file.get_slice(key)
        return TensorInfo(view.get_dtype(), tuple(view.get_shape()))

    def tensor(self, key: str) -> torch.Tensor:
        """The stored tensor `key`, on the CPU, in its stored dtype, memory-mapped. FP8 stored as bytes is FP8.

        Whoever goes through a file and holds on to nothing never has more than a few GB of it in memory.
        """
        self._given += self.tensors[key].nbytes
        if self._given > _MAPPED:  # pages that were read stay for as long as their mapping does
            self._file, self._given = safe_open(str(self.path), framework="pt"), 0
        stored = self._file.get_tensor(key)
        return stored.view(FP8) if stored.dtype == torch.uint8 and key in self.quantized else stored

    def layer(self, key: str) -> str:
        """The name of the layer that `key` is the weight of: without prefix and `.weight`."""
        return formats.layer_of(key.removeprefix(self.prefix))

    @cached_property
    def _denoiser_keys(self) -> list[str]:
        keys = [key for key in self.tensors if key.startswith(self.prefix)]
        if self.prefix == "":  # everything would be the denoiser's: leave out what other components' names begin with
            keys = [key for key in keys if not key.startswith(OTHER_COMPONENTS)]
        empty = [key for key in keys if 0 in self.tensors[key].shape]
        if empty:
            raise FormatError(f"{self.path} holds empty tensors: {', '.join(empty)}")
        return keys

    @property
    def denoiser_tensors(self) -> dict[str, TensorInfo]:
        """`TensorInfo` of the denoiser's tensors, without those of other components in the same file."""
        return {key: self.tensors[key] for key in self._denoiser_keys}

    @cached_property
    def _quantized(self) -> tuple[dict[str, formats.StoredWeight], set[str]]:
        dtypes = {key: self.tensors[key].dtype for key in self._denoiser_keys}
        unscaled = ()
        if formats.has_plain_convolutions(self.metadata):
            unscaled = {key for key in self._denoiser_keys if formats.is_convolution(self.tensors[key].shape)}
        return formats.find_weights(dtypes, self.format, unscaled)

    @property
    def quantized(self) -> Mapping[str, formats.StoredWeight]:
        """The FP8 weights of the denoiser by key; empty for a full-precision file.

        Raises:
            FormatError: scales and weights do not belong together.
        """
        return self._quantized[0]

    @cached_property
    def config(self) -> dict:
        """Keyword arguments of the architecture's diffusers class: from the shapes alone, or as a file in diffusers'
        own layout states them."""
        if self._stored_config is not None:
            return {name: value for name, value in self._stored_config.items() if not name.startswith("_")}
        shapes = {key.removeprefix(self.prefix): self.tensors[key].shape for key in self._denoiser_keys}
        try:
            return self._family.config(shapes)
        except UnknownArchitectureError as error:
            raise UnknownArchitectureError(f"{self.path} looks like {self._family.title}, but {error}") from None
        except FormatError as error:
            raise FormatError(f"{self.path}: {error}") from None
        except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
            raise FormatError(
                f"{self.path} looks like {self._family.title}, but its configuration cannot be told from its "
                f"shapes ({type(error).__name__}: {error})"
            ) from error

    def empty_model(self, *, constants: bool = True) -> torch.nn.Module:
        """The diffusers model of this checkpoint on the meta device: all of its structure, none of its memory. Found to
        fit.

        constants: with what it computes once and no file holds, such as frequencies; without, it cannot be called.

        Raises:
            FormatError: the file does not fit its architecture; what is wrong is named, all of it.
        """
        model = self._build(constants)
        self.check_fits(model)
        return model

    def _build(self, constants: bool) -> torch.nn.Module:
        import accelerate
        import diffusers
        from diffusers.models.modeling_utils import no_init_weights

        counts = [value for name, value in self.config.items() if "layers" in name and isinstance(value, int)]
        if any(count > len(self.tensors) for count in counts):
            raise FormatError(f"{self.path} says that it has more layers than it holds tensors: {self.config}")
        try:
            with (
                no_init_weights(),
                accelerate.init_empty_weights(),
                nullcontext() if constants else torch.device("meta"),
            ):
                return getattr(diffusers, self.architecture.model_class)(**self.config)
        except (AssertionError, ValueError, RuntimeError, TypeError) as error:
            raise FormatError(
                f"{self.path} looks like {self.architecture.title}, but no {self.architecture.model_class} has such "
                f"shapes: {self.config}"
            ) from error

    @cached_property
    def parameters(self) -> dict[str, list[Piece]]:
        """diffusers parameter name -> the rows of stored tensors it is made of, in order."""
        stored = {
            key.removeprefix(self.prefix): self.tensors[key].shape
            for key in self._denoiser_keys
            if key not in self._quantized[1]
        }
        if self.has_diffusers_layout:  # every tensor is a parameter
            return untouched(stored)
        try:
            found = trace(stored, self._family.model_class, self.config, self._family.converter_prefix)
        except FormatError as error:
            raise FormatError(f"{self.path} does not fit {self._family.model_class}: {error}") from None
        return {
            name: [Piece(self.prefix + piece.key, piece.start, piece.stop) for piece in pieces]
            for name, pieces in found.items()
        }

    @cached_property
    def modules(self) -> dict[str, list[str]]:
        """Stored key -> names of the diffusers parameters that hold its rows, in row order."""
        owners: dict[str, list[tuple[int, str]]] = {}
        for name, pieces in self.parameters.items():
            for piece in pieces:
                owners.setdefault(piece.key, []).append((piece.start, name))
        return {key: list(dict.fromkeys(name for _, name in sorted(found))) for key, found in owners.items()}

    def check_fits(self, model: torch.nn.Module) -> None:
        """Check that the file holds just the tensors of `model`, in its shapes.

        A shape may have more or fewer leading ones: pad tokens are stored as [dim] and as [1, dim].

        Raises:
            FormatError: naming every missing, unexpected and wrongly shaped parameter, or one whose dtype is neither
                full precision nor FP8.
        """
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        found = {name: self._shape(pieces) for name, pieces in self.parameters.items()}
        problems = misfits(wanted, found) + [f"unexpected {key}" for key in self._left_over]
        for pieces in self.parameters.values():
            dtype = self.tensors[pieces[0].key].dtype
            if (
                dtype not in formats.FULL_PRECISION
                and dtype != formats.DTYPE_FP8
                and pieces[0].key not in self.quantized
            ):
                problems.append(f"{pieces[0].key} is {dtype}, which this release does not read")
        if problems:
            raise FormatError(f"{self.path} does not fit {self.architecture.model_class}: {'; '.join(problems)}")

    @property
    def _left_over(self) -> list[str]:
        """Tensors of the denoiser that become no parameter, and should."""
        others = [key for key in self._denoiser_keys if key not in self.modules.keys() | self._quantized[1]]
        return [key for key in others if not self._family.is_unread(key.removeprefix(self.prefix))]

    def _shape(self, pieces: list[Piece]) -> tuple[int, ...]:
        shape = self.tensors[pieces[0].key].shape
        return (sum(piece.stop - piece.start for piece in pieces), *shape[1:]) if shape else shape

    @cached_property
    def layers(self) -> dict[str, type[torch.nn.Module]]:
        """Keys of the weights of linear and convolution layers -> nn.Linear or nn.Conv2d, in file order.

        A weight counts if every diffusers module behind it is of one of those kinds.

        Raises:
            FormatError: the file does not fit its architecture.
        """
        model, found = self._skeleton, {}
        for key in self._denoiser_keys:
            owners = self.modules.get(key, [])
            if not key.endswith(formats.WEIGHT) or not owners:
                continue
            modules = [model.get_submodule(formats.layer_of(name)) for name in owners]
            for kind in (torch.nn.Linear, torch.nn.Conv2d):
                if all(isinstance(module, kind) for module in modules):
                    found[key] = kind
        return found

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype that most of the denoiser's full-precision values have.

        Raises:
            FormatError: it has none.
        """
        sizes: dict[str, int] = {}
        for pieces in self.parameters.values():
            name = self.tensors[pieces[0].key].dtype
            if name in _TORCH_DTYPES:
                sizes[name] = sizes.get(name, 0) + torch.Size(self._shape(pieces)).numel()
        if not sizes:
            raise FormatError(f"{self.path} holds nothing in full precision; say what to compute in with dtype")
        return _TORCH_DTYPES[max(sizes, key=sizes.get)]

    @cached_property
    def scales(self) -> dict[str, torch.Tensor | None]:
        """What the values of every stored FP8 weight are multiplied with, by its key: float32, [1] or one a row; None
        where that is nothing. In a folded file it takes the move back.

        Raises:
            FormatError: a bad scale, see :func:`hswq_runtime.formats.read_scale`; a fold that does not fit.
        """
        scales = {
            key: formats.read_scale(weight, row_count(self.tensors[key].shape), self.tensor)
            for key, weight in self.quantized.items()
        }
        if not self._unfold:
            return scales
        # All have one then, as in V2, so that a model that is saved says what it holds.
        one = torch.ones(1, device="cpu")
        return {key: (one if scale is None else scale) * self._unfold.get(key, one) for key, scale in scales.items()}

    @cached_property
    def _unfold(self) -> dict[str, torch.Tensor]:
        """Powers of two that take back what a folded file moved, by key: float32 [1] or one a row."""
        moves = formats.fold_of(self.metadata, {key: row_count(info.shape) for key, info in self.tensors.items()})
        factors = {key: torch.tensor([2.0**-exponent for _, exponent in runs]) for key, runs in moves.items()}
        return {
            key: factor if len(factor) == 1 else factor.repeat_interleave(torch.tensor([n for n, _ in moves[key]]))
            for key, factor in factors.items()
        }

    def scale_of(self, pieces: list[Piece]) -> torch.Tensor | None:
        """What a parameter that is made of `pieces` is multiplied with, FP8 or not: None, [1] or one a row."""
        keys = {piece.key for piece in pieces}
        return gather_scale(pieces, {key: self.scales.get(key, self._unfold.get(key)) for key in keys})

    def held_as_fp8(self, key: str) -> bool:
        """Whether the loaded model holds the stored tensor `key` in FP8: an FP8 weight of a layer that allows it."""
        return key in self.quantized and key in self.layers and self.why_never_quantized(key) is None

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes that the loaded denoiser takes in its own `dtype`, scales included.

        A fused tensor's scale counts once for each of the layers that take it.
        """
        total = 0
        for pieces in self.parameters.values():
            values = torch.Size(self._shape(pieces)).numel()
            if all(self.held_as_fp8(piece.key) for piece in pieces):
                scale = self.scale_of(pieces)
                total += values * FP8.itemsize + (0 if scale is None else scale.nbytes)
            else:
                total += values * self.dtype.itemsize
        return total

    def why_never_quantized(self, key: str) -> str | None:
        """Why the weight `key` can never be FP8 in this architecture, or None."""
        if self._first_parameter in self.modules.get(key, []):
            return "diffusers takes a model's dtype from its first parameter, which must not be FP8"
        return self.architecture.why_never_quantized(self.layer(key))

    @cached_property
    def _first_parameter(self) -> str:
        return next(name for name, _ in self._skeleton.named_parameters())

    @cached_property
    def _skeleton(self) -> torch.nn.Module:
        """An empty model to look things up in; found to fit."""
        return self.empty_model(constants=False)

    @property
    def bundled(self) -> set[str]:
        """The components of the pipeline that this file holds besides the denoiser."""
        return {
            name
            for name, start in self.architecture.bundled.items()
            if any(key.startswith(start) for key in self.tensors)
        }

    @cached_property
    def scheduler(self) -> dict:
        """What the file says of its scheduler: entries of a diffusers configuration, {} if nothing.

        Raises:
            UnknownArchitectureError: it needs one that is not supported.
        """
        try:
            return self.architecture.scheduler(self.tensors.keys(), self.metadata)
        except UnknownArchitectureError as error:
            raise UnknownArchitectureError(f"{self.path} looks like {self.architecture.title}, but {error}") from None

    def require_full_precision(self) -> None:
        """Check that this is a source one can quantize.

        Raises:
            AlreadyQuantizedError: some of the denoiser's tensors are FP8, integers or another packed type, or folded.
        """
        if formats.Metadata.FOLD.value in self.metadata:
            raise AlreadyQuantizedError(f"{self.path} is a folded file; start from the original of the model")
        low = {self.tensors[key].dtype for key in self._denoiser_keys} - formats.FULL_PRECISION
        if low:
            raise AlreadyQuantizedError(
                f"{self.path} is quantized already (it holds {', '.join(sorted(low))}); "
                "start from the full-precision (FP16, BF16 or FP32) file of the model"
            )


def recognise_header(keys, metadata: Mapping[str, str]) -> tuple[Architecture, str]:
    """The architecture of a file, and the prefix of its denoiser: from a configuration in its metadata, or its keys.

    Raises:
        FormatError: the configuration cannot be read.
        UnknownArchitectureError: no row has such keys, or such a class.
    """
    config = formats.config_of(metadata)
    return recognise(keys) if config is None else (recognise_class(config), "")
