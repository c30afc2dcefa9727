"""What can go wrong with a quantized model, one class a cause.

    HSWQError                       base of every error this project raises on purpose
    ├── FormatError                 a file's bytes, keys or shapes are not what they should be
    │   └── AlreadyQuantizedError   a source holds FP8 or integer weights where full precision is needed
    ├── UnknownArchitectureError    no row of `architectures/` recognises the keys
    ├── ComponentError              a text encoder, VAE, tokenizer or scheduler is missing
    └── DeviceError                 the device asked for is not on this machine

Every message is one sentence about the cause and, where there is one, the next thing to do.
"""


class HSWQError(Exception):
    """Base class: catch this to catch everything the project raises on purpose."""


class FormatError(HSWQError):
    """A file's bytes, keys, shapes or scales are not what its format says."""


class AlreadyQuantizedError(FormatError):
    """The source is quantized already; quantizing it again would compound the error."""


class UnknownArchitectureError(HSWQError):
    """The keys of a checkpoint match no architecture in the table."""


class ComponentError(HSWQError):
    """Something a pipeline needs besides the denoiser is missing."""


class DeviceError(HSWQError):
    """The device that was asked for is not available here."""
