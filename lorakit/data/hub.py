"""Data sets of the hub: one split as plain rows, with the commit that it was read from."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lorakit.errors import DataError

_SOURCE = re.compile(
    r"hub:(?P<repository>\w[\w.-]*/\w[\w.-]*)(:(?P<config>[^:@#\s]+))?(@(?P<revision>[^@#\s]+))?(#(?P<split>[^#\s]+))?"
)
_AT_ONCE = 1000
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubSource:
    """A split of a data set on the hub.

    Args:
        repository: OWNER/NAME.
        split: Its name there; slices such as `train[:90%]` too.
        config: The configuration; None for the only one, or the default.
        revision: A branch, a tag or a commit; None for the main branch.
    """

    repository: str
    split: str
    config: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        config = f":{self.config}" if self.config else ""
        revision = f"@{self.revision}" if self.revision else ""
        return f"hub:{self.repository}{config}{revision}#{self.split}"


@dataclass(frozen=True)
class HubSplit:
    """Rows of the hub.

    Args:
        rows: One mapping of columns to cells per row; to be gone through once.
        revision: The commit that they are from.
    """

    rows: Iterable[dict[str, Any]]
    revision: str


def parse_source(text: str, split: str) -> HubSource:
    """Read `hub:OWNER/NAME[:CONFIG][@REVISION][#SPLIT]`.

    Args:
        text: As the recipe has it.
        split: Used where the text names none.

    Raises:
        ValueError: It is not of that form.
    """
    match = _SOURCE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no hub source: write hub:OWNER/NAME[:CONFIG][@REVISION][#SPLIT]")
    return HubSource(match["repository"], match["split"] or split, match["config"], match["revision"])


def load_split(source: HubSource) -> HubSplit:
    """Download a split (or take it from the cache) and read it.

    The revision is resolved to a commit first, so that all files are of one state. With HF_HUB_OFFLINE=1 the newest
    cached copy is taken; where the source names a commit, no other is accepted.

    Raises:
        DataError: No such data set, revision, configuration or split; access not granted; the hub does not
            answer; offline and not cached; or a script, which the `datasets` library does not run.
    """
    from datasets import load_dataset_builder

    revision = _commit(source) or source.revision
    try:
        builder = load_dataset_builder(source.repository, source.config, revision=revision)
        _require_commit(source, builder.hash)
        builder.download_and_prepare()
    except DataError:
        raise
    except Exception as error:  # of many libraries, none of them ours: the message says what each means
        raise DataError(f"{source}: {_explain(error)}") from error
    try:
        dataset = builder.as_dataset(split=source.split)
    except ValueError as error:
        there = ", ".join(builder.info.splits or ())
        raise DataError(f"{source}: there is no split `{source.split}`; splits there: {there}") from error
    parts = dataset.with_format("arrow").iter(_AT_ONCE)
    return HubSplit((row for part in parts for row in part.to_pylist()), str(builder.hash))


def _commit(source: HubSource) -> str | None:
    """The commit of the source's revision; None where HF_HUB_OFFLINE forbids to ask."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return HfApi().dataset_info(source.repository, revision=source.revision).sha
    except RevisionNotFoundError as error:
        raise DataError(f"{source}: the repository has no revision `{source.revision}`") from error
    except RepositoryNotFoundError as error:
        raise DataError(
            f"{source}: there is no such data set, or it is private: check the name, "
            "or log in with `hf auth login` (or set HF_TOKEN)"
        ) from error
    except HFValidationError as error:
        raise DataError(f"{source}: {error}") from error
    except OfflineModeIsEnabled:
        return None
    except Exception as error:  # in the words of whichever HTTP library is installed
        raise DataError(
            f"{source}: the hub does not answer ({error}); HF_HUB_OFFLINE=1 takes the cached copy, if there is one"
        ) from error


def _require_commit(source: HubSource, found: object) -> None:
    wanted = source.revision
    if wanted is not None and _COMMIT.fullmatch(wanted) and wanted != found:
        raise DataError(f"{source}: the cached copy is of another commit, {found}")


def _explain(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "scripts are no longer supported" in text:
        return (
            "this repository is a loading script, which the `datasets` library does not run; name a revision that has "
            "data files (often `@refs/convert/parquet`), or download the files and give their paths"
        )
    if "gated dataset" in text:
        return "access must be granted: accept the terms on the data set's page, then log in with `hf auth login`"
    if isinstance(error, ConnectionError):
        return "HF_HUB_OFFLINE is set and the data set is not in the cache (or the hub stopped answering)"
    return text.partition(" Example of usage:")[0] or type(error).__name__
