"""Why a reference does not become a file, one class a cause.

SourceError                     base of them all
├── UnknownReferenceError       it names nothing that we know how to find
├── AmbiguousReferenceError     it names a place with several models
├── UnsuitableSourceError       what is there cannot be quantized, or must not be opened
├── NotPermittedError           whoever made it does not allow this
├── AccessError                 the host refuses, and asking again will not help
└── DownloadError               it did not arrive, or something else arrived
"""

from hswq_runtime.errors import HSWQError


class SourceError(HSWQError):
    """No file came of a reference."""


class UnknownReferenceError(SourceError):
    """The reference names nothing that can be quantized."""


class AmbiguousReferenceError(SourceError):
    """The reference leaves several files to choose from; the message lists them."""


class UnsuitableSourceError(SourceError):
    """Quantized already, pickled, or not cleared by the host's scans."""


class NotPermittedError(SourceError):
    """The creator's terms do not allow a derivative, or nobody but the creator is meant to have the file."""


class AccessError(SourceError):
    """The host refuses for good: a token, a purchase, an approval is missing, or the thing is gone."""


class DownloadError(SourceError):
    """The connection kept failing, or what arrived is not what the host had listed."""
