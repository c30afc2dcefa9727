"""HSWQ as one of diffusers' quantizers: `from_pretrained`, `from_single_file`, `save_pretrained`, `dequantize`.

diffusers builds the model on the meta device, lets the quantizer exchange layers, and hands it the file's tensors one
by one. Scales do not wait for their turn there: they are tiny, diffusers would cast them to the dtype of the model,
and in a sharded file they may lie in another shard than their weight. They are read, and checked, beforehand.
"""

import copy
from enum import StrEnum

import torch
from accelerate.utils import set_module_tensor_to_device
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from safetensors import safe_open

from . import formats
from .architectures import architecture_of
from .checkpoints.fit import misfits
from .checkpoints.mapping import gather_scale, row_count, trace, untouched
from .errors import FormatError
from .layers import fp8
from .layers.matmul import set_fp8_matmul
from .layers.modules import SCALE_BUFFER, HSWQLayer, dequantize_, quantized_twin

_SAFETENSORS_NAMES = {fp8.FP8: formats.DTYPE_FP8, torch.uint8: formats.DTYPE_U8}
QUANTIZATION_CONFIG = "quantization_config"
"""Where diffusers keeps it in a model's `config.json`."""


class Method(StrEnum):
    """The name under which diffusers knows us; it goes into `config.json`."""

    HSWQ = "hswq"


class HSWQConfig(QuantizationConfigMixin):
    """Tells diffusers that a model's weights are stored in FP8 (HSWQ V1 or V2, ComfyUI's formats, a plain cast).

    Args:
        compute_dtype: what to compute in if the loader is not given `torch_dtype`.
        quant_method: stored beside the rest; there is only one.
        fp8_matmul: see :func:`hswq_runtime.layers.matmul.set_fp8_matmul`. Not stored: it is the hardware's affair.

    Raises:
        FormatError: a `compute_dtype` that one cannot compute in.
    """

    def __init__(
        self,
        compute_dtype: torch.dtype | str = torch.bfloat16,
        fp8_matmul: bool = False,
        quant_method: str | None = None,
    ):
        self.quant_method = Method.HSWQ
        named = getattr(torch, compute_dtype, None) if isinstance(compute_dtype, str) else compute_dtype
        if not isinstance(named, torch.dtype):
            raise FormatError(f"there is no dtype {compute_dtype!r}")
        self.compute_dtype = fp8.check_compute_dtype(named)
        self.fp8_matmul = fp8_matmul

    def to_dict(self) -> dict:
        """What is stored in `config.json`."""
        compute_dtype = str(self.compute_dtype).removeprefix("torch.")
        return {"quant_method": self.quant_method.value, "compute_dtype": compute_dtype}

    def to_diff_dict(self) -> dict:
        """The same: there are no defaults to leave out."""
        return self.to_dict()


class HSWQQuantizer(DiffusersQuantizer):
    """What diffusers calls while it loads a model with an :class:`HSWQConfig`. Used by diffusers, not by people."""

    use_keep_in_fp32_modules = True

    def __init__(self, quantization_config: HSWQConfig, **kwargs):
        super().__init__(copy.copy(quantization_config), **kwargs)
        self._companions: set[str] = set()
        self._kept_in_fp32: list[str] = []
        self._stored: dict[str, tuple[int, ...]] | None = None
        self._weights: dict[str, formats.StoredWeight] = {}
        self._scales: dict[str, torch.Tensor | None] = {}

    # --- What diffusers asks --------------------------------------------------------------------------

    is_serializable = True
    is_trainable = True
    is_compileable = True

    def update_torch_dtype(self, torch_dtype):
        return fp8.check_compute_dtype(torch_dtype or self.quantization_config.compute_dtype)

    def adjust_target_dtype(self, torch_dtype):
        return fp8.FP8

    def get_special_dtypes_update(self, model, torch_dtype):
        return {name: torch_dtype for name, parameter in model.named_parameters() if parameter.dtype != fp8.FP8}

    def adjust_max_memory(self, max_memory):
        # As diffusers' own quantizers do: one layer is expanded at a time.
        return {device: value * 0.9 for device, value in max_memory.items()}

    def validate_environment(self, *args, device_map=None, **kwargs):
        if isinstance(device_map, dict) and "disk" in map(str, device_map.values()):
            raise FormatError("device_map cannot put FP8 weights on the disk; use group offloading with a disk path")

    def update_missing_keys(self, model, missing_keys, prefix):
        return [key for key in missing_keys if key not in self._scale_names(model)]

    # --- Loading --------------------------------------------------------------------------------------

    def maybe_update_loaded_keys(self, loaded_keys, checkpoint_files):
        """`from_pretrained` comes here first: read all headers and scales."""
        holders, shapes, dtypes = {}, {}, {}
        for path in checkpoint_files:
            if not str(path).endswith(".safetensors"):
                raise FormatError(f"{path} is not a safetensors file; others are not read")
            file = safe_open(str(path), framework="pt")
            for key in file.keys():  # noqa: SIM118 (not a dictionary)
                view = file.get_slice(key)
                holders[key], shapes[key], dtypes[key] = file, tuple(view.get_shape()), view.get_dtype()
        self._read(dtypes, shapes, lambda key: holders[key].get_tensor(key))
        return [key for key in loaded_keys if key not in self._companions]

    def maybe_update_state_dict(self, state_dict):
        """Called for each shard; by `from_single_file` before anything else, with the file in its own layout."""
        if self._stored is None:
            dtypes = {key: _SAFETENSORS_NAMES.get(tensor.dtype, "") for key, tensor in state_dict.items()}
            self._read(dtypes, {key: tuple(t.shape) for key, t in state_dict.items()}, state_dict.__getitem__)
        for key in self._companions & state_dict.keys():
            del state_dict[key]
        for key in self._weights.keys() & state_dict.keys():
            state_dict[key] = state_dict[key].view(fp8.FP8)
        return state_dict

    def _read(self, dtypes, shapes, tensor) -> None:
        # Headers are not seen here, so that a file may be one for ComfyUI has to be allowed for.
        unscaled = {key for key, shape in shapes.items() if formats.is_convolution(shape)}
        self._weights, self._companions = formats.find_weights(dtypes, None, unscaled)
        if not self._weights:
            raise FormatError(
                "this model has no FP8 weights: load it without HSWQConfig, or quantize it with `hswq-hub quantize`"
            )
        self._scales = {
            key: formats.read_scale(weight, row_count(shapes[key]), tensor) for key, weight in self._weights.items()
        }
        self._stored = {key: shape for key, shape in shapes.items() if key not in self._companions}

    def _process_model_before_weight_loading(self, model, keep_in_fp32_modules=(), state_dict=None, **kwargs):
        shapes = self._stored
        if state_dict is not None:
            shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
            self._follow_conversion(model, shapes)
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        problems = misfits(wanted, shapes, may_be_left_over=model._keys_to_ignore_on_load_unexpected or ())
        if problems:
            raise FormatError(f"the file does not fit {type(model).__name__}: {'; '.join(problems)}")
        for name, tensor in (state_dict or {}).items():
            if name in wanted and tuple(tensor.shape) != wanted[name]:  # leading ones, which diffusers does not forgive
                state_dict[name] = tensor.reshape(wanted[name])
        self._kept_in_fp32 = list(keep_in_fp32_modules or ())
        architecture = architecture_of(model)
        first = next(name for name, _ in model.named_parameters())
        for name in self._weights:
            module = formats.layer_of(name)
            layer = model.get_submodule(module)
            forbidden = name == first or (architecture and architecture.why_never_quantized(module))
            if forbidden or self._stays_fp32(name) or not isinstance(layer, (torch.nn.Linear, torch.nn.Conv2d)):
                continue
            scale = self._scales[name]
            twin = quantized_twin(
                layer,
                scales=0 if scale is None else scale.numel(),
                compute_dtype=self.quantization_config.compute_dtype,
            )
            model.set_submodule(module, twin)

    def _follow_conversion(self, model, converted) -> None:
        """From here on weights and scales go by the names that the single-file converter gives them."""
        if converted.keys() <= self._stored.keys():  # it had nothing to convert
            traced = untouched(converted)
        else:
            traced = trace(self._stored, _loadable_class(model), model.config)
        weights, scales = {}, {}
        for name, pieces in traced.items():
            if all(piece.key in self._weights for piece in pieces) and name in converted:
                weights[name] = self._weights[pieces[0].key]
                scales[name] = gather_scale(pieces, self._scales)
        self._weights, self._scales = weights, scales

    def _stays_fp32(self, name: str) -> bool:
        return any(part in self._kept_in_fp32 for part in name.split("."))

    def _scale_names(self, model) -> set[str]:
        names = (name for name, layer in model.named_modules() if isinstance(layer, HSWQLayer))
        return {f"{name}.{SCALE_BUFFER}" for name in names}

    def check_if_quantized_param(self, model, param_value, param_name, state_dict, **kwargs):
        return param_value.dtype == fp8.FP8 or param_name in self._weights

    def create_quantized_param(self, model, param_value, param_name, target_device, *args, dtype=None, **kwargs):
        module = model.get_submodule(param_name.rpartition(".")[0])
        scale = self._scales.get(param_name)
        if isinstance(module, HSWQLayer) and param_name in self._weights:
            module.weight = torch.nn.Parameter(param_value.to(target_device), requires_grad=False)
            module.scale = None if scale is None else scale.to(target_device)
            if dtype is not None:
                module.compute_dtype = dtype
        else:  # foreign files cast more than can compute in FP8
            dtype = torch.float32 if self._stays_fp32(param_name) else dtype or self.quantization_config.compute_dtype
            value = fp8.dequantize(param_value, scale, dtype)
            set_module_tensor_to_device(model, param_name, target_device, value=value, dtype=value.dtype)

    def _process_model_after_weight_loading(self, model, **kwargs):
        layers = [layer for layer in model.modules() if isinstance(layer, HSWQLayer)]
        if not layers:
            raise FormatError("none of this model's FP8 weights can compute in FP8; load it without HSWQConfig")
        mark_quantized(model, layers[0].compute_dtype, self)
        set_fp8_matmul(model, self.quantization_config.fp8_matmul)
        return model

    # --- And back -------------------------------------------------------------------------------------

    def _dequantize(self, model):
        dequantize_(model)
        config = {key: value for key, value in model.config.items() if key != QUANTIZATION_CONFIG}
        model._internal_dict = type(model.config)(config)
        del model.quantization_method
        return model


def mark_quantized(model: torch.nn.Module, compute_dtype: torch.dtype, quantizer: HSWQQuantizer | None = None) -> None:
    """Let diffusers treat a model with FP8 layers as quantized: it can be saved, and dequantized.

    The configuration that is saved with it says what it computes in.
    """
    config = HSWQConfig(compute_dtype)
    model.hf_quantizer = quantizer or HSWQQuantizer(config)
    model.hf_quantizer.quantization_config.compute_dtype = compute_dtype
    model.is_quantized = True
    model.quantization_method = Method.HSWQ
    model.register_to_config(**{QUANTIZATION_CONFIG: config})


def _loadable_class(model: torch.nn.Module) -> str:
    """The class that diffusers has a single-file converter for: that of `model`, or one that it inherits from."""
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    return next(kind.__name__ for kind in type(model).__mro__ if kind.__name__ in SINGLE_FILE_LOADABLE_CLASSES)


auto.AUTO_QUANTIZATION_CONFIG_MAPPING[Method.HSWQ.value] = HSWQConfig
auto.AUTO_QUANTIZER_MAPPING[Method.HSWQ.value] = HSWQQuantizer
