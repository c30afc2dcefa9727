"""One pipeline for several denoisers: text encoder, VAE and the other components are loaded once."""

import gc
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hswq_runtime.architectures import Architecture
from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.loading import load_model

from .generate import open_pipeline

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class SharedPipeline:
    """A diffusers pipeline whose denoiser is exchanged.

    Args:
        base: diffusers folder or Hub repo of the other components.
        together: keep every loaded denoiser in memory; otherwise one at a time.
    """

    def __init__(
        self, architecture: Architecture, base: str, device: torch.device, dtype: torch.dtype, *, together: bool = False
    ):
        self.architecture, self.base, self.device, self.dtype = architecture, base, device, dtype
        self.together = together
        self._pipeline: DiffusionPipeline | None = None
        self._held: dict[Path, torch.nn.Module] = {}

    def pipeline_for(self, checkpoint: Checkpoint) -> "DiffusionPipeline":
        """The pipeline with the denoiser of `checkpoint`.

        Raises:
            FormatError: the file does not fit.
            ComponentError: the base lacks a component.
        """
        if checkpoint.path not in self._held:
            if not self.together:
                # Before the next one is loaded: a GPU need not hold two.
                self.release()
            self._held[checkpoint.path] = load_model(checkpoint, self.dtype, device=self.device)
        denoiser = self._held[checkpoint.path]
        if self._pipeline is None:
            self._pipeline = open_pipeline(checkpoint, denoiser, self.base, self.device)
        self._pipeline.register_modules(**{self.architecture.component: denoiser})
        return self._pipeline

    @property
    def loaded(self) -> int:
        """How many denoisers are in memory."""
        return len(self._held)

    def release(self) -> None:
        """Free the denoisers; the other components stay in memory."""
        self._held.clear()
        if self._pipeline is not None:
            self._pipeline.register_modules(**{self.architecture.component: None})
        gc.collect()
