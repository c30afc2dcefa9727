"""From a diffusion checkpoint to a measured, published HSWQ FP8 model. The command line is `hswq-hub`."""

__version__ = "0.1.0"
