"""One pipeline, several denoisers: text encoder, VAE and the rest are loaded once."""

import gc
from pathlib import Path

import torch

from hswq_runtime.architectures import Architecture
from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.loading import load_model

from .generate import open_pipeline


class SharedPipeline:
    """A diffusers pipeline whose denoiser is exchanged.

    Args:
        base: diffusers folder or Hub repo of the other components.
        together: hold every denoiser that was loaded once; otherwise one at a time.
    """

    def __init__(
        self, architecture: Architecture, base: str, device: torch.device, dtype: torch.dtype, *, together: bool = False
    ):
        self.architecture, self.base, self.device, self.dtype = architecture, base, device, dtype
        self.together = together
        self._pipeline = None
        self._held: dict[Path, torch.nn.Module] = {}

    def around(self, checkpoint: Checkpoint):
        """The pipeline with the denoiser that `checkpoint` describes.

        Raises:
            FormatError: the file does not fit.
            ComponentError: the base lacks a component.
        """
        if checkpoint.path not in self._held:
            if not self.together:
                # The next one is loaded when the last one is gone: a GPU need not hold two.
                self.release()
            self._held[checkpoint.path] = load_model(checkpoint, self.dtype).to(self.device)
        denoiser = self._held[checkpoint.path]
        if self._pipeline is None:
            self._pipeline = open_pipeline(checkpoint, denoiser, self.base, self.device)
        self._pipeline.register_modules(**{self.architecture.component: denoiser})
        return self._pipeline

    def release(self) -> None:
        """Let go of the denoisers; the other components stay."""
        self._held.clear()
        if self._pipeline is not None:
            self._pipeline.register_modules(**{self.architecture.component: None})
        gc.collect()
