"""The exceptions of this project, one class for each cause.

    HSWQError                       base of every error that this project raises on purpose
    ├── FormatError                 a file's bytes, keys or shapes are not what they should be
    │   └── AlreadyQuantizedError   a source holds FP8 or integer weights instead of full precision
    ├── UnknownArchitectureError    no row of `architectures/` matches the keys
    ├── ComponentError              a text encoder, VAE, tokenizer or scheduler is missing
    ├── DeviceError                 the requested device is not on this machine, or cannot do what is asked
    └── FullPrecisionError          layers are to multiply in FP8, but their file wants all of them exact

Every message is one sentence: the cause and, where there is one, the next thing to do.
"""

import errno

from .text import sentence

_NO_MEMORY = ("can't allocate memory", "Cannot allocate memory", "out of memory", "bad_alloc", "can't start new thread")
"""What is in the messages of libraries that got no memory, which raise anything then."""


class HSWQError(Exception):
    """Base class of every error that the project raises on purpose.

    `str()` of it is one line of at most :data:`hswq_runtime.text.LONGEST_SENTENCE` characters that can be printed,
    whatever strangers' names are in it. `args` holds the whole message.
    """

    def __str__(self) -> str:
        return sentence(super().__str__())


class FormatError(HSWQError):
    """A file's bytes, keys, shapes or scales do not follow its format."""


class AlreadyQuantizedError(FormatError):
    """The source is already quantized; quantizing it again would compound the error."""


class UnknownArchitectureError(HSWQError):
    """The keys of a checkpoint match no known architecture."""


class ComponentError(HSWQError):
    """A component that the pipeline needs besides the denoiser is missing or cannot be loaded."""


class DeviceError(HSWQError):
    """The requested device is not available, or cannot do what is asked."""


class FullPrecisionError(HSWQError):
    """Layers are to multiply in FP8, but their file wants every one multiplied in full precision."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, of whatever library, says that no memory was left."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return not isinstance(error, HSWQError) and any(text in str(error) for text in _NO_MEMORY)
