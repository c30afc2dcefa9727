"""A lazy view of a safetensors checkpoint: what it stores, and the diffusers modules behind each tensor.

Opening reads the header alone; a tensor's bytes are read when it is asked for. Which diffusers parameter a
stored tensor becomes is *found*, by running diffusers' own single-file converter on row numbers instead of
values: the converters rename keys and cut or join tensors along their first dimension, so what arrives under a
parameter's name says which rows of which stored tensor it is made of. No table of keys is kept here.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from . import formats
from .architectures import OTHER_COMPONENTS, recognise
from .errors import AlreadyQuantizedError, FormatError, UnknownArchitectureError
from .fp8 import FP8

_ROWS = 1 << 32
"""A tag is `tensor number · _ROWS + row number`; no tensor has that many rows."""


DTYPE_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E5M2", formats.DTYPE_FP8), 1),
}
"""Bytes of one value, by safetensors' names."""


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


@dataclass(frozen=True)
class Piece:
    """Rows `start:stop` of the stored tensor `key`."""

    key: str
    start: int
    stop: int


_TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Checkpoint:
    """The denoiser of one safetensors file, with its architecture found out.

    Attributes:
        path: the file.
        metadata: the header's strings, {} if it has none.
        tensors: `TensorInfo` of every tensor in the file, in the order of its bytes.
        architecture, prefix: what :func:`hswq_runtime.architectures.recognise` found.
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
        self.metadata = self._file.metadata() or {}
        self.tensors = {key: self._info(key) for key in self._file.offset_keys()}
        try:
            self.architecture, self.prefix = recognise(self.tensors)
        except UnknownArchitectureError as error:
            raise UnknownArchitectureError(f"{self.path}: {error}") from None
        self.format = formats.version_of(self.metadata)

    def _info(self, key: str) -> TensorInfo:
        view = self._file.get_slice(key)
        return TensorInfo(view.get_dtype(), tuple(view.get_shape()))

    def tensor(self, key: str) -> torch.Tensor:
        """The stored tensor `key`, on the CPU, in its stored dtype."""
        return self._file.get_tensor(key)

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
        return formats.find_weights({key: self.tensors[key].dtype for key in self._denoiser_keys}, self.format)

    @property
    def quantized(self) -> Mapping[str, formats.StoredWeight]:
        """The FP8 weights of the denoiser by key; empty for a full-precision file.

        Raises:
            FormatError: scales and weights do not belong together.
        """
        return self._quantized[0]

    @cached_property
    def config(self) -> dict:
        """Keyword arguments of the architecture's diffusers class, from the shapes alone."""
        shapes = {key.removeprefix(self.prefix): self.tensors[key].shape for key in self._denoiser_keys}
        try:
            return self.architecture.config(shapes)
        except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
            raise FormatError(
                f"{self.path} looks like {self.architecture.title}, but its configuration cannot be told from its "
                f"shapes ({type(error).__name__}: {error})"
            ) from error

    def empty_model(self) -> torch.nn.Module:
        """The diffusers model of this checkpoint on the meta device: all of its structure, none of its memory."""
        import accelerate
        import diffusers

        try:
            with accelerate.init_empty_weights():
                return getattr(diffusers, self.architecture.model_class)(**self.config)
        except (AssertionError, ValueError, RuntimeError) as error:
            raise FormatError(
                f"{self.path} looks like {self.architecture.title}, but no {self.architecture.model_class} has such "
                f"shapes: {self.config}"
            ) from error

    @cached_property
    def parameters(self) -> dict[str, list[Piece]]:
        """diffusers parameter name -> the rows of stored tensors it is made of, in order."""
        from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

        keys = [key for key in self._denoiser_keys if key not in self._quantized[1]]
        tagged = {key.removeprefix(self.prefix): self._tags(n, key) for n, key in enumerate(keys)}
        convert = SINGLE_FILE_LOADABLE_CLASSES[self.architecture.model_class]["checkpoint_mapping_fn"]
        converted = convert(checkpoint=tagged, config=self.config)
        return {name: list(_pieces(tags, keys)) for name, tags in converted.items()}

    def _tags(self, number: int, key: str) -> torch.Tensor:
        shape = self.tensors[key].shape
        rows = torch.arange(shape[0] if shape else 1, dtype=torch.int64) + number * _ROWS
        return rows.reshape(-1, *[1] * (len(shape) - 1))

    @cached_property
    def modules(self) -> dict[str, list[str]]:
        """Stored key -> names of the diffusers parameters that hold its rows, in row order."""
        owners: dict[str, list[tuple[int, str]]] = {}
        for name, pieces in self.parameters.items():
            for piece in pieces:
                owners.setdefault(piece.key, []).append((piece.start, name))
        return {key: [name for _, name in sorted(found)] for key, found in owners.items()}

    def is_whole(self, piece: Piece) -> bool:
        """Whether `piece` is all rows of its tensor."""
        shape = self.tensors[piece.key].shape
        return piece.start == 0 and piece.stop == (shape[0] if shape else 1)

    def check_fits(self, model: torch.nn.Module) -> None:
        """Check that the file holds just the tensors of `model`, in its shapes.

        A shape may have more or fewer leading ones: pad tokens are stored as [dim] and as [1, dim].

        Raises:
            FormatError: naming every missing, unexpected and wrongly shaped parameter, or one whose dtype is neither
                full precision nor FP8.
        """
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        found = {name: self._shape(pieces) for name, pieces in self.parameters.items()}
        problems = [f"missing {name}" for name in wanted.keys() - found.keys()]
        problems += [f"unexpected {name}" for name in found.keys() - wanted.keys()]
        problems += [
            f"{name} has shape {list(found[name])} instead of {list(wanted[name])}"
            for name in wanted.keys() & found.keys()
            if not _same_but_for_leading_ones(found[name], wanted[name])
        ]
        for pieces in self.parameters.values():
            dtype = self.tensors[pieces[0].key].dtype
            if dtype not in formats.FULL_PRECISION and dtype != formats.DTYPE_FP8:
                problems.append(f"{pieces[0].key} is {dtype}, which this release does not read")
        if problems:
            raise FormatError(
                f"{self.path} does not fit {self.architecture.model_class}: {'; '.join(sorted(problems))}"
            )

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
        model = self.empty_model()
        self.check_fits(model)
        found = {}
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
            if not self.held_as_fp8(pieces[0].key):
                total += values * self.dtype.itemsize
                continue
            scaled = self.quantized[pieces[0].key].scale_key is not None
            total += values * FP8.itemsize + scaled * torch.float32.itemsize
        return total

    def why_never_quantized(self, key: str) -> str | None:
        """Why the weight `key` can never be FP8 in this architecture, or None."""
        return self.architecture.why_never_quantized(self.layer(key))

    def require_full_precision(self) -> None:
        """Check that this is a source one can quantize.

        Raises:
            AlreadyQuantizedError: some of the denoiser's tensors are FP8, integers or another packed type.
        """
        low = {self.tensors[key].dtype for key in self._denoiser_keys} - formats.FULL_PRECISION
        if low:
            raise AlreadyQuantizedError(
                f"{self.path} is quantized already (it holds {', '.join(sorted(low))}); "
                "start from the full-precision (FP16, BF16 or FP32) file of the model"
            )


def _same_but_for_leading_ones(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    longer, shorter = sorted((one, other), key=len, reverse=True)
    extra = len(longer) - len(shorter)
    return longer[:extra] == (1,) * extra and longer[extra:] == shorter


def _pieces(tags: torch.Tensor, keys: list[str]) -> Iterator[Piece]:
    """Runs of consecutive rows in a converted tensor of tags."""
    flat = tags.reshape(-1)
    starts = [0, *(torch.nonzero(flat.diff() != 1).flatten() + 1).tolist(), len(flat)]
    for begin, end in itertools.pairwise(starts):
        number, row = divmod(int(flat[begin]), _ROWS)
        yield Piece(keys[number], row, row + end - begin)
