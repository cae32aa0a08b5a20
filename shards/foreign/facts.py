"""What the members of a foreign sample tell of it: label, method, video, frame, group, split."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from pydantic import ValidationError

from dfdet.schema import REAL, REAL_METHOD, CropRecipe, GroupLevel, Sample, Split, split_key

LabelFrom = Literal["auto", "json", "cls", "name"]
Label = Literal[0, 1]

LABEL_NAMES = ("label", "is_fake", "fake", "class")
"""Where a JSON may tell the label; all that are there must agree."""
METHOD_NAMES = ("method", "source")
"""Where a JSON may tell the method, the first that is there."""
VIDEO_NAMES = ("video", "video_id")
FRAME_NAMES = ("frame", "frame_index", "frame_idx")
REAL_NAMES = ("real", "original", "pristine", "none")
"""What stands for no method, in any case of letters."""
MAX_TEXT = 500
MAX_FRAME = 2**31 - 1

_SPLITS = {"validation": "val", "valid": "val", "dev": "val"}
_WORDS: dict[str, Label] = {"0": 0, "1": 1, "real": 0, "fake": 1, "false": 0, "true": 1}


class UnusableSampleError(Exception):
    """A sample that cannot be indexed; the text is the reason."""


class ContradictionError(Exception):
    """A sample of which two members, or two fields, say different things: its label is in doubt."""


@dataclass(frozen=True)
class Told:
    """What is told; None where nothing is."""

    label: Label | None = None
    dataset: str | None = None
    method: str | None = None
    video: str | None = None
    frame: int | None = None
    group: str | None = None
    group_level: GroupLevel = "none"
    identity: str | None = None
    split: Split = "all"
    crop: CropRecipe | None = None


def read_json(data: bytes, key: str) -> Told:
    """Facts of a JSON member: those of our own samples in full, of others by common names.

    Args:
        data: The member.
        key: The sample's key in its tar.

    Raises:
        UnusableSampleError: It is no JSON object, or a field is none of its kind.
        ContradictionError: Two fields disagree, or our own JSON is that of another sample.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnusableSampleError("its JSON cannot be read") from error
    if not isinstance(found, dict):
        raise UnusableSampleError("its JSON is no object")
    try:
        return _own(Sample.model_validate(found), key)
    except ValidationError:
        return _common(found)


def read_cls(data: bytes) -> Label:
    """Label of a ``.cls`` member: ``0`` real, ``1`` fake, or a word of :func:`read_label`.

    Raises:
        UnusableSampleError: It is anything else.
    """
    return read_label(data[:20].decode("latin-1").strip(), ".cls")


def read_label(value: object, name: str) -> Label:
    """0, false or ``real`` is 0; 1, true or ``fake`` is 1, as number, truth value or text.

    Raises:
        UnusableSampleError: It is anything else.
    """
    word = value.strip().lower() if isinstance(value, str) else str(value).lower()
    if not isinstance(value, str | int) or word not in _WORDS:
        raise UnusableSampleError(f"its {name} is no label (0 or real, 1 or fake)")
    return _WORDS[word]


def label_of_name(key: str) -> Label | None:
    """Label of a sample that lies in a folder ``real`` or ``fake`` of its tar.

    Raises:
        ContradictionError: It lies in both.
    """
    folders = {part.lower() for part in key.split("/")[:-1]}
    return one_label({_WORDS[word] for word in ("real", "fake") if word in folders}, "folders")


def one_label(labels: set[Label], where: str) -> Label | None:
    """The label that all agree on; None of none.

    Raises:
        ContradictionError: They differ.
    """
    if len(labels) > 1:
        raise ContradictionError(f"its {where} say both real and fake")
    return labels.pop() if labels else None


def method_of(label: Label, told: str | None) -> str:
    """Method as in keys: ``real``, or the method told, or ``fake`` where none is.

    Raises:
        ContradictionError: A real with a method, or a fake without one by name.
    """
    if told is None:
        return REAL_METHOD if label == REAL else "fake"
    if (told.lower() in REAL_NAMES) != (label == REAL):
        raise ContradictionError(f"its label is {label} and its method {told!r} (0 is real, 1 fake)")
    return REAL_METHOD if label == REAL else told


def _own(sample: Sample, key: str) -> Told:
    try:
        is_ours = split_key(key) == split_key(sample.key)
    except ValueError:
        is_ours = True  # Our JSON beside a key of other form.
    if not is_ours:
        raise ContradictionError(f"its JSON is that of {sample.key!r}")
    texts = (sample.dataset, sample.source, sample.video, sample.group, sample.identity)
    for text in texts:
        _text(text, "JSON")
    return Told(
        label=sample.label,
        dataset=sample.dataset,
        method=sample.source,
        video=sample.video,
        frame=_frame(sample.frame),
        group=sample.group,
        group_level=sample.group_level,
        identity=sample.identity,
        split=sample.split,
        crop=sample.crop,
    )


def _common(found: dict[str, Any]) -> Told:
    labels = {read_label(found[name], name) for name in LABEL_NAMES if found.get(name) is not None}
    group = _text(found.get("group"), "group")
    return Told(
        label=one_label(labels, "JSON fields"),
        dataset=_text(found.get("dataset"), "dataset"),
        method=_text(_first(found, METHOD_NAMES), "method"),
        video=_text(_first(found, VIDEO_NAMES), "video"),
        frame=_frame(_first(found, FRAME_NAMES)),
        group=group,
        group_level=_group_level(found.get("group_level")) if group is not None else "none",
        identity=_text(found.get("identity"), "identity"),
        split=_split(found.get("split")),
    )


def _first(found: dict[str, Any], names: Sequence[str]) -> Any:
    return next((found[name] for name in names if found.get(name) is not None), None)


def _text(value: object, name: str) -> str | None:
    if value is None:
        return None
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not 0 < len(text) <= MAX_TEXT or re.search("[\0\ud800-\udfff]", text):
        raise UnusableSampleError(f"its {name} is no text of 1 to {MAX_TEXT} characters")
    return text


def _frame(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch("[0-9]{1,10}", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_FRAME:
        raise UnusableSampleError("its frame is no number from 0")
    return value


def _group_level(value: object) -> GroupLevel:
    if value not in (None, "exact", "identity"):
        raise UnusableSampleError("its group_level is neither exact nor identity")
    return "identity" if value == "identity" else "exact"


def _split(value: object) -> Split:
    if value is None:
        return "all"
    word = str(value).lower()
    split = _SPLITS.get(word, word)
    if split not in get_args(Split):
        raise UnusableSampleError("its split is none of train, val, test")
    return cast(Split, split)
