"""What a node sees of a shard set. Runs there, by value: the standard library alone up here."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

SIZES = 8
"""Remote tars whose size is asked for on a node: each is a request."""
CHUNK = 2**20


def look_at_sets(
    data: dict[str, Any], manifests: dict[str, str], me: str, nodes: list[str], salt: str, budget: int
) -> dict[str, Any]:
    """Reads manifests, looks for their tars, and compares some checksums.

    Args:
        data: The config's section, dumped.
        manifests: Path or URL by the name of each set.
        me: Name of this node.
        nodes: All that look: each reads other tars.
        salt: Of this call: another draws other tars.
        budget: Bytes that this node may read for checksums.

    Returns:
        By set: ``problems``, and, if its manifest could be read, ``manifest`` (its digest), ``tars``,
        ``bytes``, ``remote`` bytes, remote tars that were ``sized``, ``read`` tars and ``read_bytes``.
    """
    from dfdet.config import Data
    from dfdet.data.files import SetFiles
    from dfdet.data.index import make_cache

    cache = make_cache(Data.model_validate(data))
    answers: dict[str, Any] = {name: {"problems": []} for name in manifests}
    entries: list[tuple[str, Any, Any]] = []
    for name, path in manifests.items():
        try:
            files = SetFiles(path, cache)
            manifest = files.read_manifest()
        except Exception as error:  # noqa: BLE001 - of set or storage; all are this node's answer
            answers[name]["problems"].append(_brief(error))
            continue
        answers[name] |= _described(manifest)
        entries += [(name, entry, place) for entry, place in _places(files, manifest, answers[name])]
    mine = draw([(entry.sha256, entry.bytes) for _, entry, _ in entries], nodes, me, salt, budget)
    drawn = set(mine)
    for number, (name, entry, place) in enumerate(entries):
        if number in drawn:
            _compare(entry, place, answers[name])
    for number in order([entry.sha256 for _, entry, _ in entries], nodes, me, salt)[:SIZES]:
        name, entry, place = entries[number]
        if not isinstance(place, Path) and number not in drawn:
            _compare_size(entry, place, answers[name])
    return answers


def _described(manifest: Any) -> dict[str, Any]:
    return {
        "manifest": hashlib.sha256(manifest.model_dump_json().encode()).hexdigest(),
        "tars": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "remote": 0,
        "sized": 0,
        "read": 0,
        "read_bytes": 0,
    }


def _places(files: Any, manifest: Any, answer: dict[str, Any]) -> list[tuple[Any, Any]]:
    """The tars that are where they should be, as entry and place."""
    places: list[tuple[Any, Any]] = []
    for entry in manifest.shards:
        try:
            place = files.shards(manifest.model_copy(update={"shards": (entry,)}))[0]
        except Exception as error:  # noqa: BLE001 - missing or truncated: one of maybe many
            answer["problems"].append(_brief(error))
            continue
        places.append((entry, place))
        answer["remote"] += 0 if isinstance(place, Path) else entry.bytes
    try:
        if any(isinstance(place, Path) for _, place in places):
            index = hashlib.sha256(files.read_index(manifest)).hexdigest()
            if index != manifest.index.sha256:
                answer["problems"].append(_damaged(files.beside(manifest.index.file)))
    except Exception as error:  # noqa: BLE001 - as above
        answer["problems"].append(_brief(error))
    return places


def order(checksums: list[str], nodes: list[str], me: str, salt: str) -> list[int]:
    """Numbers of the files that are this node's, in the order in which it reads them."""
    keys = [hashlib.sha256(f"{salt} {checksum}".encode()).digest() for checksum in checksums]
    mine = [i for i, key in enumerate(keys) if nodes[int.from_bytes(key[:8]) % len(nodes)] == me]
    return sorted(mine, key=lambda i: keys[i])


def draw(files: list[tuple[str, int]], nodes: list[str], me: str, salt: str, budget: int) -> list[int]:
    """Numbers of the files that this node reads whole: each file is at most one node's.

    Args:
        files: Checksum and size of each.
        nodes: All that read.
        me: This one.
        salt: Of this call.
        budget: Most bytes; a first file is read even if it is larger, unless this is 0.
    """
    drawn: list[int] = []
    for number in order([checksum for checksum, _ in files], nodes, me, salt):
        size = files[number][1]
        if budget and (size <= budget or not drawn):
            drawn.append(number)
            budget = max(0, budget - size)
    return drawn


def _compare(entry: Any, place: Any, answer: dict[str, Any]) -> None:
    """Reads a tar from end to end."""
    try:
        if isinstance(place, Path):
            with place.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            found = _remote_digest(place)
    except Exception as error:  # noqa: BLE001 - of disk or storage; all are this node's answer
        answer["problems"].append(_brief(error))
        return
    answer["sized"] += not isinstance(place, Path)
    answer["read"] += 1
    answer["read_bytes"] += entry.bytes
    if found != entry.sha256:
        answer["problems"].append(_damaged(str(place)))


def _damaged(file: str) -> str:
    return (
        f"{file}: another SHA-256 than its manifest says: damaged or of another set;"
        " copy the set again, or make it again"
    )


def _remote_digest(place: Any) -> str:
    from dfdet.data.remote import open_filesystem, persist

    def transfer() -> str:
        filesystem, digest = open_filesystem(place.url), hashlib.sha256()
        with filesystem.open(filesystem._strip_protocol(place.url), "rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    return persist(place.url, transfer, retries=1)


def _compare_size(entry: Any, place: Any, answer: dict[str, Any]) -> None:
    from dfdet.data.remote import open_filesystem, persist

    def ask() -> int | None:
        filesystem = open_filesystem(place.url)
        size: int | None = filesystem.info(filesystem._strip_protocol(place.url)).get("size")
        return size

    try:
        size = persist(place.url, ask, retries=1)
    except Exception as error:  # noqa: BLE001 - of the storage; all are this node's answer
        answer["problems"].append(_brief(error))
        return
    answer["sized"] += 1
    if size is not None and size != entry.bytes:
        answer["problems"].append(
            f"{place}: {size} bytes, but its manifest says {entry.bytes}: truncated or of another set;"
            " copy the set again"
        )


def _brief(error: Exception) -> str:
    words = " ".join(str(error).split())
    return words if hasattr(error, "exit_code") else f"{type(error).__name__}: {words[:300]}"
