"""A checkpoint behind a URL, brought whole into this machine's cache to be opened like a local one.

The copy lies in a folder as a run's, with the run's ``result.json``, and is named by its content: many
processes may bring it at once, and a later one finds it there.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from dfdet.checkpoints.checkpoint_format import CHECKSUMS, problem
from dfdet.config import Data
from dfdet.data.remote import is_url
from dfdet.errors import DfdetError, WeightsError
from dfdet.runs.checkpoint_mirror import STAGED
from dfdet.runs.objects import Store, check_writable, tried
from dfdet.runs.patience import cause

logger = logging.getLogger(__name__)

_STEP = re.compile(r"step_\d{8,}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.(?:json|safetensors)")


def local(source: str, cache_dir: str | None = None) -> str:
    """A checkpoint's source that can be opened here: itself, unless it is a URL.

    Args:
        source: As ``--checkpoint``; behind a URL a checkpoint folder, or a run folder, which stands for
            its best checkpoint, else its last.
        cache_dir: Where copies go; None: where those of shards do by default.

    Raises:
        WeightsError: There is no checkpoint, it is damaged, or the storage cannot be read.
    """
    if not is_url(source):
        return source
    try:
        return str(_brought(source, Path(cache_dir or Data().cache_dir).expanduser().absolute()))
    except OSError as error:
        raise WeightsError(f"--checkpoint {source}: cannot be fetched ({cause(error)})") from error


def _brought(source: str, cache: Path) -> Path:
    try:
        place = check_writable(source)
    except DfdetError as error:
        message = str(error).removeprefix("run.storage: ")
        if message.startswith("run.storage="):
            message = (
                f"{source}: no checkpoint can be fetched from there; give a folder, s3://... or gs://..."
            )
        raise WeightsError(f"--checkpoint {message}") from error
    run, step = _run_and_step(place)
    store = Store(run)
    for name in [step] if step else _candidates(store):
        for folder in (f"checkpoints/{STAGED}{name}", f"checkpoints/{name}"):
            listing = tried(lambda folder=folder: store.get(f"{folder}/{CHECKSUMS}"))  # type: ignore[misc]
            if listing is not None:
                return _kept(store, folder, name, listing, cache)
        logger.warning("%s/checkpoints/%s: named as a checkpoint but not there", run, name)
    raise WeightsError(
        f"--checkpoint {source}: neither a checkpoint (no {CHECKSUMS}) nor a run folder with one; give"
        " <storage>/<name> or one of its checkpoints/step_*"
    )


def _run_and_step(place: str) -> tuple[str, str | None]:
    """The URL of the run, and the checkpoint if one is named."""
    parent, _, name = place.rpartition("/")
    if _STEP.fullmatch(name) and parent.endswith("/checkpoints"):
        return parent.removesuffix("/checkpoints"), name
    return place.removesuffix("/checkpoints"), None


def _candidates(store: Store) -> Iterator[str]:
    """Checkpoints of a run, the best first, then the last, then the newer ones first."""
    for mark in ("best", "last"):
        text = tried(lambda mark=mark: store.get(f"checkpoints/{mark}.json"))  # type: ignore[misc]
        with suppress(ValueError, KeyError, TypeError):
            name = json.loads(text or b"")["checkpoint"]
            if isinstance(name, str) and _STEP.fullmatch(name):
                yield name
    names = {path.partition("/")[0] for path in tried(lambda: store.list("checkpoints"))}
    yield from sorted(filter(_STEP.fullmatch, names), reverse=True)


def _kept(store: Store, folder: str, step: str, listing: bytes, cache: Path) -> Path:
    """The checkpoint's folder in the cache, brought there unless it is there."""
    result = tried(lambda: store.get("result.json")) or b"{}"
    digest = hashlib.sha256(listing + b"\0" + result).hexdigest()
    root = cache / "checkpoints" / digest
    inner = Path(store.url.rpartition("/")[2] or "run") / "checkpoints" / step
    if problem(root / inner) is None:
        return root / inner
    temporary = root.with_name(f".{digest}.{secrets.token_hex(4)}")
    try:
        _bring(store, folder, listing, temporary / inner)
        (temporary / inner.parts[0] / "result.json").write_bytes(result)
        if cause := problem(temporary / inner):
            raise WeightsError(f"--checkpoint {store.url}/{folder}: {cause}; give another one of the run")
        shutil.rmtree(root, ignore_errors=True)
        with suppress(OSError):  # another process has just brought it
            temporary.rename(root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return root / inner


def _bring(store: Store, folder: str, listing: bytes, target: Path) -> None:
    target.mkdir(parents=True)
    (target / CHECKSUMS).write_bytes(listing)
    try:
        names = list(json.loads(listing)["files"])
    except (ValueError, KeyError, TypeError):
        names = []
    for name in names:
        if not _FILE.fullmatch(name):
            raise WeightsError(f"--checkpoint {store.url}/{folder}: lists the unsafe name {name!r}")
        tried(lambda name=name: store.get_file(f"{folder}/{name}", target / name))  # type: ignore[misc]
