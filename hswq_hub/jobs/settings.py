"""On which machine a job runs, and for how long."""

from dataclasses import dataclass


@dataclass(frozen=True)
class JobSettings:
    """The machine of a job. flavor: as Hugging Face calls it. timeout: such as "3h", when it is stopped.

    package: what the job installs, as pip has it; None: this version. namespace: who pays; None: the token's account.
    """

    flavor: str = "l40sx1"
    timeout: str = "3h"
    package: str | None = None
    namespace: str | None = None
