"""Torch files read by ``weights_only``: objects of classes that are not torch's stay inert.

Lightning checkpoints hold their hyper-parameters as Python objects, an enumeration of the authors' own
package among them, and one such object makes all of a file unreadable. So each class is replaced, by its
name, by a stand-in that keeps the arguments and does nothing: no module of a file is imported and
nothing of it is called. A file that names functions of Python itself or of torch is refused: weights
need none.
"""

from __future__ import annotations

import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from dfdet.errors import WeightsError

RECORDS = frozenset({"argparse", "datetime", "pathlib"})
"""Modules of Python whose objects stand in hyper-parameters."""
REFUSED_ROOTS = frozenset({*sys.stdlib_module_names, *IMPORT_MAPPING, "torch"}) - RECORDS
"""Packages whose functions a file has no business to name; Python 2's names of modules too."""


class Foreign:
    """Stands for an object whose class was not loaded."""

    args: tuple[object, ...]
    """What the class would have been called with."""

    def __new__(cls, *args: object) -> Foreign:  # noqa: D102
        made = object.__new__(cls)
        made.args = args
        return made

    def __init__(self, *args: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def plain(value: object) -> object:
    """A member of an enumeration as its value; anything else as it is."""
    return value.args[0] if isinstance(value, Foreign) and len(value.args) == 1 else value


def read(path: Path, *, shapes_only: bool = False) -> tuple[object, tuple[str, ...]]:
    """What a torch file holds, and the names of the classes in it that were replaced by stand-ins.

    Args:
        path: The file.
        shapes_only: Tensors of the meta device, without the bytes.

    Raises:
        WeightsError: A TorchScript archive, a damaged file, one of another kind, or one that names
            functions that weights do not need.
    """
    try:
        _refuse_torchscript(path)
        foreign = _foreign_names(path)
        with safe_globals([(type("Foreign", (Foreign,), {}), name) for name in foreign]):
            loaded = torch.load(
                path, map_location="meta" if shapes_only else "cpu", weights_only=True, mmap=_mapped(path)
            )
    except (UnpicklingError, RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"{path}: cannot be read as weights ({reason}); it is damaged or of another kind: get it again,"
            " or give a safetensors file"
        ) from error
    return loaded, foreign


def _mapped(path: Path) -> bool:
    """Whether the tensors can stay in the file until they are copied: not in torch's oldest format."""
    return zipfile.is_zipfile(path)


def _refuse_torchscript(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        if not any(name.endswith("/constants.pkl") for name in archive.namelist()):
            return
    raise WeightsError(
        f"{path}: a TorchScript archive, which is a program and not only weights, and is not run; give the"
        " checkpoint or safetensors file of the same model (of OpenAI's towers: --model.pretrained openai,"
        " or a state dict saved from the archive)"
    )


def _foreign_names(path: Path) -> tuple[str, ...]:
    if not zipfile.is_zipfile(path):
        return ()
    names = sorted(get_unsafe_globals_in_checkpoint(str(path)))
    refused = [name for name in names if name.partition(".")[0] in REFUSED_ROOTS]
    if refused:
        raise WeightsError(
            f"{path}: names {', '.join(refused)}, which would be called on loading; nothing was run. Do not"
            " trust the file, or save its state_dict and hyper_parameters again as plain values"
        )
    return tuple(names)
