"""The page where anyone sees what quantization did, on this machine or as a Hugging Face Space."""

from importlib.util import find_spec

if find_spec("spaces") is not None:  # ZeroGPU's package has to be there before torch is
    import spaces  # noqa: F401
