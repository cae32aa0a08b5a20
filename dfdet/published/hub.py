"""Single files of Hugging Face's hub, through its own client: never a repository's code."""

from __future__ import annotations

from pathlib import Path

from dfdet.errors import WeightsError


def download(repository: str, file: str, revision: str | None = None) -> Path:
    """A file of a repository: the copy in the client's cache, or else downloaded into it.

    Without a revision a copy in the cache stays the one that is used: scores do not change by
    themselves, and a machine without a network does not wait for one.

    Raises:
        WeightsError: There is no network, repository, revision or file, or no right to read it.
    """
    from huggingface_hub import constants, errors, hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, revision=revision, local_files_only=True))
    except errors.LocalEntryNotFoundError:
        pass
    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except Exception as error:  # the client's HTTP library, which changes, raises its own
        at = f"@{revision}" if revision else ""
        raise WeightsError(
            f"hf:{repository}{at}: {file} is neither in the cache ({constants.HF_HUB_CACHE}) nor can it be"
            f" downloaded ({_first_line(error)}); check id and network, or place config.json and"
            f" model.safetensors of {repository} in a folder by hand and give that folder"
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__
