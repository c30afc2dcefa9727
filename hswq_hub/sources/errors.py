"""Why a reference does not lead to a usable file: one class for each cause.

SourceError                     base of them all
├── UnknownReferenceError       it names nothing that can be found
├── AmbiguousReferenceError     it names several models
├── UnsuitableSourceError       the file cannot be quantized, or must not be opened
├── PromptsError                a list of prompts cannot be used
├── NotPermittedError           its creator does not allow this
├── AccessError                 the host refuses; a retry will not help
└── DownloadError               it did not arrive, or is not what was listed
"""

from hswq_runtime.errors import HSWQError


class SourceError(HSWQError):
    """A reference does not lead to a usable file."""


class UnknownReferenceError(SourceError):
    """The reference names nothing that can be quantized."""


class AmbiguousReferenceError(SourceError):
    """The reference means several models; the message lists them."""


class UnsuitableSourceError(SourceError):
    """The file is quantized already, pickled, or has not passed the host's scans."""


class PromptsError(SourceError):
    """A file of prompts is missing, empty, too long or no text, or leaves nothing for the other list."""


class NotPermittedError(SourceError):
    """The creator does not allow derivatives, or has not released the file to the public."""


class AccessError(SourceError):
    """The host refuses: a token, a purchase or an approval is missing, or the model is gone."""


class DownloadError(SourceError):
    """The connection kept failing, or the file is not the one that the host lists."""
