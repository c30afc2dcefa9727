"""HSWQ as one of diffusers' quantizers: `from_pretrained`, `from_single_file`, `save_pretrained`, `dequantize`.

diffusers builds the model on the meta device, lets the quantizer replace layers, and passes it the file's tensors one
by one. Scales are read and checked before: diffusers would cast them to the model's dtype, and in a sharded file a
scale may be in another shard than its weight.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import set_module_tensor_to_device
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from safetensors import safe_open

from . import formats
from .architectures import Shapes, architecture_of
from .checkpoints.fit import misfits
from .checkpoints.mapping import gather_product, gather_scale, is_convolution, row_count, trace, untouched
from .errors import FormatError
from .layers import fp8
from .layers.alignment import align_
from .layers.matmul import set_quantized_matmul
from .layers.modules import INPUT_SCALE_BUFFER, SCALE_BUFFER, HSWQLayer, HSWQLinear, dequantize_, quantized_twin
from .layers.numbers import NUMBERS, dequantize, is_quantized
from .text import several, shown, written

if TYPE_CHECKING:
    from diffusers import ModelMixin

_SAFETENSORS_NAMES = {NUMBERS[number].dtype: number.dtype for number in formats.Number} | {
    torch.uint8: formats.DTYPE_U8
}
QUANTIZATION_CONFIG = "quantization_config"
"""Key of the quantization in a model's `config.json`; diffusers' name."""


class Method(StrEnum):
    """Name of this quantizer in diffusers and in `config.json`."""

    HSWQ = "hswq"


class HSWQConfig(QuantizationConfigMixin):  # type: ignore[misc]  # diffusers has no types
    """Tells diffusers that a model's weights are stored in FP8 or INT8 (HSWQ V1, V2 or INT8, ComfyUI's formats, a plain
    cast).

    Args:
        compute_dtype: the dtype to compute in if the loader is not given `torch_dtype`.
        quantized_matmul: see :func:`hswq_runtime.layers.matmul.set_quantized_matmul`. Not stored, since it depends on
            the hardware.
        quant_method: as `config.json` states it; there is only one.
        exact: names of the linear layers that their file wants multiplied in full precision, as `config.json` states
            them for a saved model.
        groups: of those with rotated inputs how many are rotated together, by name, as `config.json` states them.

    Raises:
        FormatError: layers cannot compute in `compute_dtype`; `exact` is no list of names, or `groups` no such groups.
    """

    def __init__(
        self,
        compute_dtype: torch.dtype | str = torch.bfloat16,
        quantized_matmul: bool = False,
        quant_method: str | None = None,
        exact: Sequence[str] = (),
        groups: Mapping[str, int] | None = None,
    ):
        self.quant_method = Method.HSWQ
        named = getattr(torch, compute_dtype, None) if isinstance(compute_dtype, str) else compute_dtype
        if not isinstance(named, torch.dtype):
            raise FormatError(f"there is no dtype {compute_dtype!r}")
        self.compute_dtype = fp8.check_compute_dtype(named)
        self.quantized_matmul = quantized_matmul
        if not isinstance(exact, (list, tuple)) or not all(isinstance(name, str) for name in exact):
            raise FormatError(f"exact is a list of names of layers, not {exact!r}")
        self.exact = tuple(exact)
        groups = {} if groups is None else groups
        if not isinstance(groups, Mapping) or any(group not in formats.GROUPS for group in groups.values()):
            raise FormatError(f"groups are {several(formats.GROUPS, 6)} by the name of a layer, not {written(groups)}")
        self.groups = dict(groups)

    def to_dict(self) -> dict[str, Any]:
        """The entries that are stored in `config.json`."""
        compute_dtype = str(self.compute_dtype).removeprefix("torch.")
        described = {"quant_method": self.quant_method.value, "compute_dtype": compute_dtype}
        more: dict[str, Any] = {"exact": [*self.exact], "groups": dict(self.groups)}
        return described | {name: value for name, value in more.items() if value}

    def to_diff_dict(self) -> dict[str, Any]:
        """The same entries: none is left out as a default."""
        return self.to_dict()


class HSWQQuantizer(DiffusersQuantizer):  # type: ignore[misc]  # diffusers has no types
    """Loads the weights of a model with an :class:`HSWQConfig`. diffusers creates and calls it; users do not."""

    use_keep_in_fp32_modules = True

    quantization_config: HSWQConfig

    def __init__(self, quantization_config: HSWQConfig, **kwargs: Any):
        super().__init__(copy.copy(quantization_config), **kwargs)
        self._companions: set[str] = set()
        self._kept_in_fp32: list[str] = []
        self._stored: Shapes = {}
        self._weights: dict[str, formats.StoredWeight] = {}
        self._scales: dict[str, torch.Tensor | None] = {}
        self._products: dict[str, formats.Product | None] = {}

    # --- Properties and adjustments that diffusers asks for -------------------------------------------

    is_serializable = True
    is_trainable = True
    is_compileable = True

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype:
        return fp8.check_compute_dtype(torch_dtype or self.quantization_config.compute_dtype)

    def adjust_target_dtype(self, torch_dtype: torch.dtype) -> torch.dtype:
        return fp8.FP8

    def get_special_dtypes_update(self, model: ModelMixin, torch_dtype: torch.dtype) -> dict[str, torch.dtype]:
        return {name: torch_dtype for name, parameter in model.named_parameters() if not is_quantized(parameter.dtype)}

    def adjust_max_memory(self, max_memory: Mapping[int | str, int]) -> dict[int | str, float]:
        # As in diffusers' own quantizers; the rest is for the layer that is expanded.
        return {device: value * 0.9 for device, value in max_memory.items()}

    def validate_environment(self, *args: Any, device_map: object = None, **kwargs: Any) -> None:
        if isinstance(device_map, dict) and "disk" in map(str, device_map.values()):
            raise FormatError(
                "device_map cannot put quantized weights on the disk; use group offloading with a disk path"
            )

    def update_missing_keys(self, model: ModelMixin, missing_keys: list[str], prefix: str) -> list[str]:
        return [key for key in missing_keys if key not in self._scale_names(model)]

    # --- Loading --------------------------------------------------------------------------------------

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: Iterable[str]) -> list[str]:
        """Read all headers and scales; `from_pretrained` calls this first."""
        holders: dict[str, safe_open] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        dtypes: dict[str, str] = {}
        header: dict[str, formats.Product] = {}
        for path in checkpoint_files:
            if not str(path).endswith(".safetensors"):
                raise FormatError(f"{path} is not a safetensors file; others are not read")
            file = safe_open(str(path), framework="pt")
            header |= formats.check_metadata(file.metadata() or {})
            for key in file.keys():  # noqa: SIM118 (not a dictionary)
                view = file.get_slice(key)
                holders[key], shapes[key], dtypes[key] = file, tuple(view.get_shape()), view.get_dtype()
        self._read_scales(dtypes, shapes, lambda key: holders[key].get_tensor(key), header)
        return [key for key in loaded_keys if key not in self._companions]

    def maybe_update_state_dict(self, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Take the scales out of a shard, and view bytes as FP8.

        `from_single_file` calls this first, with the file in its own layout.
        """
        if not self._stored:
            dtypes = {key: _SAFETENSORS_NAMES.get(tensor.dtype, "") for key, tensor in state_dict.items()}
            self._read_scales(dtypes, {key: tuple(t.shape) for key, t in state_dict.items()}, state_dict.__getitem__)
            self._check_described()
        for key in self._companions & state_dict.keys():
            del state_dict[key]
        for key in self._weights.keys() & state_dict.keys():
            state_dict[key] = state_dict[key].view(NUMBERS[self._weights[key].number].dtype)
        return state_dict

    def _read_scales(
        self,
        dtypes: Mapping[str, str],
        shapes: Shapes,
        tensor: Callable[[str], torch.Tensor],
        header: Mapping[str, formats.Product] | None = None,
    ) -> None:
        # Of a single file diffusers does not pass the metadata on: it may be one for ComfyUI, without scales on
        # convolutions, and what its header says of exact layers is not known; `load_model` reads both.
        unscaled = {key for key, shape in shapes.items() if is_convolution(shape)}
        self._weights, self._companions = formats.find_weights(dtypes, None, unscaled)
        if not self._weights:
            raise FormatError(
                "this model has no quantized weights: load it without HSWQConfig, or quantize it with "
                "`hswq-hub quantize`"
            )
        self._scales = {
            key: formats.read_scale(weight, row_count(shapes[key]), tensor) for key, weight in self._weights.items()
        }
        self._products = {
            key: formats.read_product(weight, (shapes[key] or (1,))[-1], tensor, header)
            for key, weight in self._weights.items()
        }
        self._stored = {key: shape for key, shape in shapes.items() if key not in self._companions}

    def _check_described(self) -> None:
        """Check that every INT8 weight of a single file is described beside it, since its header is not known."""
        for key, weight in self._weights.items():
            if weight.number is formats.Number.INT8 and weight.mark_key is None:
                raise FormatError(
                    f"{shown(key)} is INT8, and only the file's header, which diffusers does not pass on, may say "
                    "whether its inputs are rotated: load it with HSWQPipeline or hswq_runtime.load_model"
                )

    def _process_model_before_weight_loading(
        self,
        model: ModelMixin,
        keep_in_fp32_modules: Collection[str] | None = (),
        state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        shapes = self._stored
        if state_dict is not None:
            shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
            self._follow_conversion(model, shapes)
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        problems = misfits(wanted, shapes, may_be_left_over=model._keys_to_ignore_on_load_unexpected or ())
        if problems:
            raise FormatError(f"the file does not fit {type(model).__name__}: {several(problems, length=120)}")
        if state_dict is not None:
            for name in wanted.keys() & state_dict.keys():  # misfits allows leading ones, diffusers does not
                state_dict[name] = state_dict[name].reshape(wanted[name])
        self._kept_in_fp32 = list(keep_in_fp32_modules or ())
        architecture = architecture_of(model)
        first = next(name for name, _ in model.named_parameters())
        for name in self._weights:
            module = formats.layer_of(name)
            layer = model.get_submodule(module)
            forbidden = name == first or (architecture and architecture.why_never_quantized(module))
            if forbidden or self._stays_fp32(name) or not isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
                continue
            scale, product = self._scales[name], self._products[name]
            if product is None or (product.number is formats.Number.INT8 and not isinstance(layer, torch.nn.Linear)):
                continue
            # Of a saved model the configuration says what ComfyUI's marks say of other files.
            exact = product.exact or module in self.quantization_config.exact
            group = self.quantization_config.groups.get(module, product.group)
            product = self._products[name] = replace(product, exact=exact, group=group)
            twin = quantized_twin(
                layer,
                scales=0 if scale is None else scale.numel(),
                compute_dtype=self.quantization_config.compute_dtype,
                product=product,
            )
            model.set_submodule(module, twin)

    def _follow_conversion(self, model: ModelMixin, converted: Shapes) -> None:
        """Rename weights and scales as the single-file converter has renamed the tensors."""
        if converted.keys() <= self._stored.keys():  # nothing was converted
            traced = untouched(converted)
        else:
            traced = trace(self._stored, _loadable_class(model), model.config)
        weights: dict[str, formats.StoredWeight] = {}
        scales: dict[str, torch.Tensor | None] = {}
        products: dict[str, formats.Product | None] = {}
        known = {key: product for key, product in self._products.items() if product is not None}
        for name, pieces in traced.items():
            if all(piece.key in self._weights for piece in pieces) and name in converted:
                weights[name] = self._weights[pieces[0].key]
                scales[name] = gather_scale(pieces, self._scales)
                products[name] = gather_product(pieces, known)
        self._weights, self._scales, self._products = weights, scales, products

    def _stays_fp32(self, name: str) -> bool:
        return any(part in self._kept_in_fp32 for part in name.split("."))

    def _scale_names(self, model: ModelMixin) -> set[str]:
        names = (name for name, layer in model.named_modules() if isinstance(layer, HSWQLayer))
        return {f"{name}.{buffer}" for name in names for buffer in (SCALE_BUFFER, INPUT_SCALE_BUFFER)}

    def check_if_quantized_param(
        self, model: ModelMixin, param_value: torch.Tensor, param_name: str, state_dict: object, **kwargs: Any
    ) -> bool:
        return is_quantized(param_value.dtype) or param_name in self._weights

    def create_quantized_param(
        self,
        model: ModelMixin,
        param_value: torch.Tensor,
        param_name: str,
        target_device: torch.device,
        *args: Any,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        module = model.get_submodule(param_name.rpartition(".")[0])
        scale = self._scales.get(param_name)
        if isinstance(module, HSWQLayer) and param_name in self._weights:
            module.weight = torch.nn.Parameter(param_value.to(target_device), requires_grad=False)
            module.scale = None if scale is None else scale.to(target_device)
            if isinstance(module, HSWQLinear) and (product := self._products[param_name]) is not None:
                module.set_product(product, target_device)
            if dtype is not None:
                module.compute_dtype = dtype
        else:  # foreign files also quantize layers that cannot be held so
            dtype = torch.float32 if self._stays_fp32(param_name) else dtype or self.quantization_config.compute_dtype
            stored = self._products.get(param_name) or formats.Product()
            value = dequantize(param_value, scale, dtype, stored.group)
            set_module_tensor_to_device(model, param_name, target_device, value=value, dtype=value.dtype)

    def _process_model_after_weight_loading(self, model: ModelMixin, **kwargs: Any) -> ModelMixin:
        layers = [layer for layer in model.modules() if isinstance(layer, HSWQLayer)]
        if not layers:
            raise FormatError("none of this model's layers can be held quantized; load it without HSWQConfig")
        align_(model)
        mark_quantized(model, layers[0].compute_dtype, self)
        set_quantized_matmul(model, self.quantization_config.quantized_matmul)
        return model

    # --- Dequantizing ---------------------------------------------------------------------------------

    def _dequantize(self, model: ModelMixin) -> ModelMixin:
        dequantize_(model)
        config = {key: value for key, value in model.config.items() if key != QUANTIZATION_CONFIG}
        model._internal_dict = type(model.config)(config)
        del model.quantization_method
        return model


def mark_quantized(model: ModelMixin, compute_dtype: torch.dtype, quantizer: HSWQQuantizer | None = None) -> None:
    """Let diffusers treat a model with quantized layers as quantized, so that it can save and dequantize it.

    The configuration that is saved with the model states `compute_dtype`, which layers are exact, and whose inputs are
    rotated.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, HSWQLinear)}
    exact = [name for name, layer in layers.items() if layer.exact]
    groups = {name: layer.group for name, layer in layers.items() if layer.group is not None}
    config = HSWQConfig(compute_dtype, exact=exact, groups=groups)
    model.hf_quantizer = quantizer or HSWQQuantizer(config)
    of_model = model.hf_quantizer.quantization_config
    of_model.compute_dtype, of_model.exact, of_model.groups = compute_dtype, config.exact, config.groups
    model.is_quantized = True
    model.quantization_method = Method.HSWQ
    model.register_to_config(**{QUANTIZATION_CONFIG: config})


def _loadable_class(model: ModelMixin) -> str:
    """The first class of `model`'s method resolution order that has a single-file converter in diffusers."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    return next(kind.__name__ for kind in type(model).__mro__ if kind.__name__ in SINGLE_FILE_LOADABLE_CLASSES)


auto.AUTO_QUANTIZATION_CONFIG_MAPPING[Method.HSWQ.value] = HSWQConfig
auto.AUTO_QUANTIZER_MAPPING[Method.HSWQ.value] = HSWQQuantizer
