"""Settings of a job."""

from dataclasses import dataclass


@dataclass(frozen=True)
class JobSettings:
    """On which machine a job runs, and for how long.

    flavor: Hugging Face's name of the machine. timeout: as "3h"; the job is stopped then. package: requirement that the
    job installs; None: this version. namespace: account that pays; None: the token's.
    """

    flavor: str = "l40sx1"
    timeout: str = "3h"
    package: str | None = None
    namespace: str | None = None
