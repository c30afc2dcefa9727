"""One pipeline for several denoisers: text encoder, VAE and the other components are loaded once."""

import gc
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from hswq_runtime.architectures import Architecture
from hswq_runtime.checkpoints.checkpoint import Checkpoint
from hswq_runtime.loading import load_model

from .generate import open_pipeline, put_on
from .placement import usable_memory

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class SharedPipeline:
    """A diffusers pipeline whose denoiser is exchanged.

    Args:
        base: diffusers folder or Hub repo of the other components.
        size: pixels a side of its pictures; None: the model's own.
        memory: GB of the device that it may take; None: most of what is free when the first denoiser comes.
        together: keep every loaded denoiser on the device; otherwise one at a time, as much of it as fits.
    """

    def __init__(
        self,
        architecture: Architecture,
        base: str,
        device: torch.device,
        dtype: torch.dtype,
        size: int | None = None,
        memory: float | None = None,
        *,
        together: bool = False,
    ):
        self.architecture, self.base, self.device, self.dtype = architecture, base, device, dtype
        self.size, self.together = size, together
        self._given, self._bound = memory, inf
        self._pipeline: DiffusionPipeline | None = None
        self._held: dict[tuple[Path, torch.dtype], torch.nn.Module] = {}

    def pipeline_for(self, checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> "DiffusionPipeline":
        """The pipeline with the denoiser of `checkpoint`, in `dtype`; None: in that of the pipeline.

        Raises:
            FormatError: the file does not fit.
            ComponentError: the base lacks a component.
            DeviceError: not even a block of the denoiser at a time fits.
        """
        key = checkpoint.path, dtype or self.dtype
        if key not in self._held:
            if not self.together:
                # Before the next one is loaded: a GPU need not hold two.
                self.release()
            self._held[key] = load_model(checkpoint, key[1])
        denoiser, component = self._held[key], self.architecture.component
        if self._pipeline is None:
            # Of a device that holds nothing of it yet.
            self._bound = inf if self.together else usable_memory(self.device, self._given)
            self._pipeline = open_pipeline(checkpoint, denoiser, self.base, self.device, self.size, self._bound)
        elif getattr(self._pipeline, component) is not denoiser:
            self._pipeline.remove_all_hooks()  # they hold the denoiser
            self._pipeline.register_modules(**{component: denoiser})
            put_on(self._pipeline, checkpoint, self.device, self.size, inf if self.together else self._bound)
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
