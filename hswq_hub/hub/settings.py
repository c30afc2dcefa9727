"""Where on the Hub a folder goes, and how."""

from dataclasses import dataclass


@dataclass(frozen=True)
class UploadSettings:
    """Where on the Hub a folder goes, and how.

    repo: "owner/name". private, gated None: as the source is, for what is made from a gated or private repo.
    create_pr: as a pull request. revision: to a branch, made if it is not there; None: main. collection: slug of one
    that the repo is put in. verify: load the files back from the Hub. force: also into a repo that is not ours.
    """

    repo: str
    private: bool | None = None
    gated: bool | None = None
    create_pr: bool = False
    revision: str | None = None
    collection: str | None = None
    verify: bool = True
    force: bool = False
