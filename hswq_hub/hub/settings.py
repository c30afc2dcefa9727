"""Settings of an upload."""

from dataclasses import dataclass


@dataclass(frozen=True)
class UploadSettings:
    """Where on the Hub a folder goes, and how.

    repo: "owner/name". private, gated: None: as the source's repo is. create_pr: open a pull request. revision: branch,
    created if missing; None: main. collection: slug of a collection to add the repo to. verify: load the files back
    from the Hub. force: write also into a repo that is not ours.
    """

    repo: str
    private: bool | None = None
    gated: bool | None = None
    create_pr: bool = False
    revision: str | None = None
    collection: str | None = None
    verify: bool = True
    force: bool = False
