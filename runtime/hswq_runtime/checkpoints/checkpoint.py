"""A lazy view of a safetensors checkpoint: what it stores, and the diffusers modules behind each tensor.

Opening reads the header alone; a tensor's bytes are read when it is asked for. `mapping.py` finds which diffusers
parameters a stored tensor becomes.
"""

import inspect
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .. import formats
from ..architectures import ARCHITECTURES, OTHER_COMPONENTS, Architecture, Config, of_class
from ..errors import FormatError, UnknownArchitectureError
from ..layers.fp8 import FP8
from ..text import several, shown, written
from .configuration import CONFIG, Configuration, check_bounds
from .fit import NOT_TO_BUILD, empty_model, misfits
from .header import TensorInfo, config_of, recognise_header
from .mapped import MAPPED_BYTES, MappedFile
from .mapping import Piece, gather_product, gather_scale, trace, untouched
from .stored import read_products, read_scales, stored_weights, unfold_factors

_SHOWN = 3
"""Entries that are named where a configuration is wrong as a whole."""
_TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Checkpoint:
    """The denoiser of one safetensors file, with its architecture recognised.

    Args:
        path: the file.
        stated: the denoiser's configuration, for a file whose own header has none. None: it is guessed from shapes.
        unfold: take the moves of a folded file back, so that a LoRA fits. ComfyUI does not.
        mapped_bytes: bytes that are read through one memory mapping of it, see :class:`.mapped.MappedFile`.

    Attributes:
        metadata: the header's strings, {} if it has none.
        tensors: `TensorInfo` of every tensor by key, in file order.
        prefix: of the denoiser's keys.
        format: the format that the metadata names, or None.
        has_diffusers_layout: whether the keys are diffusers' parameter names instead of those of the original layout.
        stated: the configuration in its header, else the given one, else None.

    Raises:
        FormatError: not a safetensors file, a truncated or damaged one, or the configuration is of another class.
        UnknownArchitectureError: the keys match no known architecture.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        stated: Configuration | None = None,
        unfold: bool = True,
        mapped_bytes: int = MAPPED_BYTES,
    ):
        self.path, self.unfold = Path(path), unfold
        self._file = MappedFile(self.path, mapped_bytes)
        self.metadata, self.tensors = self._file.metadata, self._file.tensors
        own = config_of(self.metadata)
        self.stated = stated if own is None else Configuration(own, f"the header of {shown(self.path.name)}")
        try:
            self._family, self.prefix, self.has_diffusers_layout = recognise_header(self.tensors, self.metadata)
        except UnknownArchitectureError as error:
            raise UnknownArchitectureError(f"{shown(self.path.name)}: {error}") from None
        if self.stated is not None:
            self.stated.check_class(self._family.model_class, self.path)
        self.format = formats.format_of(self.metadata)
        self._described = formats.check_metadata(self.metadata)

    @cached_property
    def architecture(self) -> Architecture:
        """The row that fits the keys; of several rows with the same keys, the one that fits the configuration.

        Raises:
            FormatError: the configuration does not follow from the shapes, or no row fits it.
        """
        if all(row is self._family for row in ARCHITECTURES.values() if row.model_class == self._family.model_class):
            return self._family
        if (found := of_class(self._family.model_class, self.config)) is None:
            raise FormatError(f"{self.path} looks like none of the models known: {written(self.config)}")
        return found

    def tensor(self, key: str) -> torch.Tensor:
        """The stored tensor `key`, on the CPU, in its stored dtype, memory-mapped. FP8 weights stored as U8 become FP8.

        A pass over the file that keeps no tensor holds at most a few GB of it in memory.
        """
        stored = self._file.tensor(key)
        return stored.view(FP8) if stored.dtype == torch.uint8 and key in self.quantized else stored

    def layer(self, key: str) -> str:
        """The name of the layer whose weight is `key`: the key without prefix and `.weight`."""
        return formats.layer_of(key.removeprefix(self.prefix))

    @cached_property
    def _denoiser_keys(self) -> list[str]:
        keys = [key for key in self.tensors if key.startswith(self.prefix)]
        if self.prefix == "":  # every key matches: leave out those of other components
            keys = [key for key in keys if not key.startswith(OTHER_COMPONENTS)]
        if empty := [key for key in keys if 0 in self.tensors[key].shape]:
            raise FormatError(f"{self.path} holds empty tensors: {several(empty)}")
        return keys

    @property
    def denoiser_tensors(self) -> dict[str, TensorInfo]:
        """`TensorInfo` of the denoiser's tensors by key, without other components in the same file."""
        return {key: self.tensors[key] for key in self._denoiser_keys}

    @cached_property
    def _quantized(self) -> tuple[dict[str, formats.StoredWeight], set[str]]:
        return stored_weights(self.denoiser_tensors, self.metadata)

    @property
    def quantized(self) -> Mapping[str, formats.StoredWeight]:
        """The quantized weights of the denoiser by key; empty for a full-precision file.

        Raises:
            FormatError: scales and weights do not belong together.
        """
        return self._quantized[0]

    @cached_property
    def config(self) -> Config:
        """Keyword arguments of the architecture's diffusers class: as stated, or as the shapes tell.

        Raises:
            FormatError: they do not follow from the shapes.
            UnknownArchitectureError: the shapes are those of a model that is not supported.
        """
        return self._told_by_shapes if self.stated is None else self.stated.arguments

    @property
    def whole_config(self) -> Config:
        """The same with all that the class has by default; values are JSON."""
        known = inspect.signature(type(self._built).__init__).parameters
        return {name: value for name, value in self._built.config.items() if name in known}

    @property
    def guess(self) -> str | None:
        """What of the configuration is guessed, in a sentence; None if it is stated."""
        if self.stated is not None:
            return None
        guessed = [f"{name} {self.config[name]}" for name in self._family.guessed]
        return (
            f"nothing states the configuration of {shown(self.path.name)}; it is taken to be that of "
            f"{self.architecture.title}: {', '.join([*guessed, 'its defaults for what shapes do not tell'])}"
        )

    @cached_property
    def _told_by_shapes(self) -> Config:
        shapes = {key.removeprefix(self.prefix): self.tensors[key].shape for key in self._denoiser_keys}
        try:
            return self._family.config(shapes)
        except UnknownArchitectureError as error:
            raise UnknownArchitectureError(f"{self.path} looks like {self._family.title}, but {error}") from None
        except FormatError as error:
            raise FormatError(f"{self.path}: {error}") from None
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise FormatError(
                f"{self.path} looks like {self._family.title}, but its configuration cannot be told from its "
                f"shapes ({type(error).__name__}: {shown(error)})"
            ) from error

    def empty_model(self, *, constants: bool = True) -> torch.nn.Module:
        """The diffusers model of this checkpoint on the meta device, without memory for its weights.

        Args:
            constants: with the buffers that it computes at creation and no file holds, such as frequencies. Without
                them the model cannot be called.

        Raises:
            FormatError: the file does not fit its architecture; the message names what is wrong.
        """
        _ = self._skeleton  # checked once; what is computed needs numbers that are right
        return self._build(constants)

    @cached_property
    def _built(self) -> Any:
        """An empty model that is not checked yet; it is only read."""
        return self._build(constants=False)

    def _misfit(self, *problems: str) -> FormatError:
        """The error of a file that does not fit its model; names what states another configuration than it has."""
        if self.stated is None:
            return FormatError(f"{self.path} does not fit {self._family.model_class}: {several(problems, length=120)}")
        told: Config = {}
        if not self.has_diffusers_layout:
            with suppress(FormatError):
                told = self._told_by_shapes
        said = [*self.stated.differences(told, self._family.guessed)[:_SHOWN], several(problems, 1, 90)]
        if config_of(self.metadata) is None:
            said.append(f"pass a base whose {self._family.component}/{CONFIG} is this model's")
        name, where = shown(self.path.name, 40), shown(self.stated.where, 60)
        return FormatError(f"{name} does not fit the configuration in {where}: {'; '.join(said)}")

    def _build(self, constants: bool) -> torch.nn.Module:
        try:
            check_bounds(self.config, self.denoiser_tensors, self._family.table_values)
            return empty_model(self._family.model_class, self.config, constants=constants)
        except NOT_TO_BUILD as error:
            if self.stated is not None:
                reason = shown(" ".join(str(error).split()), 40)
                raise self._misfit(f"no {self._family.model_class} can have it ({reason})") from error
            raise FormatError(
                f"{self.path} looks like {self.architecture.title}, but no {self.architecture.model_class} has such "
                f"shapes: {written(self.config)}"
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
        config = self.config if self.stated is None else self.whole_config
        try:
            found = trace(stored, self._family.model_class, config, self._family.converter_prefix)
        except FormatError as error:
            raise self._misfit(str(error)) from None
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
        """Check that the file holds exactly the tensors of `model`, in its shapes.

        A shape may have more or fewer leading ones: pad tokens are stored as [dim] and as [1, dim].

        Raises:
            FormatError: the message names parameters that are missing, unexpected or wrongly shaped, or whose dtype is
                neither full precision nor FP8: the first few of them, and how many there are.
        """
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        found = {name: self._shape(pieces) for name, pieces in self.parameters.items()}
        problems = misfits(wanted, found) + [f"unexpected {key}" for key in self._left_over]
        for key in (pieces[0].key for pieces in self.parameters.values()):
            dtype = self.tensors[key].dtype
            if dtype not in formats.FULL_PRECISION | {formats.DTYPE_FP8} and key not in self.quantized:
                problems.append(f"{key} is {dtype}, which this release does not read")
        if problems:
            raise self._misfit(*problems)

    @property
    def _left_over(self) -> list[str]:
        """Tensors of the denoiser that become no parameter and may not be left over."""
        others = [key for key in self._denoiser_keys if key not in self.modules.keys() | self._quantized[1]]
        return [key for key in others if not self._family.is_unread(key.removeprefix(self.prefix))]

    def _shape(self, pieces: list[Piece]) -> tuple[int, ...]:
        shape = self.tensors[pieces[0].key].shape
        return (sum(piece.stop - piece.start for piece in pieces), *shape[1:]) if shape else shape

    @cached_property
    def layers(self) -> dict[str, type[torch.nn.Module]]:
        """Key of the weight of a linear or convolution layer -> nn.Linear or nn.Conv2d, in file order.

        A weight counts if every diffusers module behind it is of that class.

        Raises:
            FormatError: the file does not fit its architecture.
        """
        model = self._skeleton
        found: dict[str, type[torch.nn.Module]] = {}
        for key in self._denoiser_keys:
            owners = self.modules.get(key, []) if key.endswith(formats.WEIGHT) else []
            modules = [model.get_submodule(formats.layer_of(name)) for name in owners]
            for kind in (torch.nn.Linear, torch.nn.Conv2d):
                if modules and all(isinstance(module, kind) for module in modules):
                    found[key] = kind
        return found

    @cached_property
    def dtype(self) -> torch.dtype:
        """The most frequent dtype of the denoiser's full-precision values.

        Raises:
            FormatError: it has no full-precision values.
        """
        sizes: dict[str, int] = {}
        for pieces in self.parameters.values():
            name = self.tensors[pieces[0].key].dtype
            if name in _TORCH_DTYPES:
                sizes[name] = sizes.get(name, 0) + torch.Size(self._shape(pieces)).numel()
        if not sizes:
            raise FormatError(f"{self.path} holds nothing in full precision; say what to compute in with dtype")
        return _TORCH_DTYPES[max(sizes, key=lambda name: sizes[name])]

    @cached_property
    def scales(self) -> dict[str, torch.Tensor | None]:
        """The scale of every quantized weight by key: float32 [1] or [rows]; None if it has none.

        In a folded file the scale also takes the move back.

        Raises:
            FormatError: a bad scale, see :func:`hswq_runtime.formats.read_scale`; a fold that does not fit.
        """
        return read_scales(self.quantized, self.tensors, self.tensor, self._unfold)

    @cached_property
    def products(self) -> dict[str, formats.Product]:
        """How the file wants the layer of every quantized weight multiplied, by key.

        A folded file whose moves are taken back has no input scales: they are those of the folded inputs.

        Raises:
            FormatError: a bad input scale, see :func:`hswq_runtime.formats.read_product`.
        """
        return read_products(self.quantized, self.tensors, self.tensor, self._described, unfolded=bool(self._unfold))

    @cached_property
    def _unfold(self) -> dict[str, torch.Tensor]:
        return unfold_factors(self.tensors, self.metadata) if self.unfold else {}

    def scale_of(self, pieces: list[Piece]) -> torch.Tensor | None:
        """The factor of a parameter that is made of `pieces`, FP8 or not: None, [1] or [rows]."""
        keys = {piece.key for piece in pieces}
        return gather_scale(pieces, {key: self.scales.get(key, self._unfold.get(key)) for key in keys})

    def product_of(self, pieces: list[Piece]) -> formats.Product | None:
        """How a parameter made of `pieces` is multiplied, exactly where they differ; None: it is not held quantized."""
        held = all(self.held_quantized(piece.key) for piece in pieces)
        return gather_product(pieces, self.products) if held else None

    def held_quantized(self, key: str) -> bool:
        """Whether the loaded model can hold the tensor `key` quantized: it is the weight of a layer that allows it."""
        allowed = key in self.quantized and key in self.layers and self.why_never_quantized(key) is None
        return allowed and (self.quantized[key].number is formats.Number.FP8 or self.layers[key] is torch.nn.Linear)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of the loaded denoiser, with `dtype` for all that is not quantized, scales included.

        The scale of a fused tensor counts once for each layer that it is split into.
        """
        total = 0
        for pieces in self.parameters.values():
            values = torch.Size(self._shape(pieces)).numel()
            if (product := self.product_of(pieces)) is not None:
                scale, is_linear = self.scale_of(pieces), self.layers[pieces[0].key] is torch.nn.Linear
                scales = (0 if scale is None else scale.numel()) + (is_linear and product.input_scale is not None)
                total += values * FP8.itemsize + 4 * scales
            else:
                total += values * self.dtype.itemsize
        return total

    def why_never_quantized(self, key: str) -> str | None:
        """Why the weight `key` can never be FP8 in this architecture; None if it can."""
        if self._first_parameter in self.modules.get(key, []):
            return "diffusers takes a model's dtype from its first parameter, which must not be FP8"
        return self.architecture.why_never_quantized(self.layer(key))

    @cached_property
    def _first_parameter(self) -> str:
        return next(name for name, _ in self._skeleton.named_parameters())

    @cached_property
    def _skeleton(self) -> torch.nn.Module:
        """An empty model, checked to fit; it is only read."""
        self.check_fits(self._built)
        return self._built  # type: ignore[no-any-return]  # diffusers has no types

    @property
    def bundled(self) -> set[str]:
        """Names of the pipeline's components that this file holds besides the denoiser."""
        return {
            n for n, start in self.architecture.bundled.items() if any(key.startswith(start) for key in self.tensors)
        }

    @cached_property
    def scheduler(self) -> Config:
        """Entries of the scheduler's configuration that the file states, {} if none.

        Raises:
            UnknownArchitectureError: the file needs a scheduler that is not supported.
        """
        try:
            return self.architecture.scheduler(self.tensors.keys(), self.metadata)
        except UnknownArchitectureError as error:
            raise UnknownArchitectureError(f"{self.path} looks like {self.architecture.title}, but {error}") from None
