"""What is changed in a command before it runs, and what is not run: each with its reason.

Every entry must match a command of the pages, or a test fails. In replacements ``{world}`` is the
temporary folder and ``{port}`` the port of its file server.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SMALL = "--model.backbone tiny --model.pretrained None --model.image_size 32 --engine.precision fp32"
"""A tower that needs no download and trains in seconds."""


@dataclass(frozen=True)
class Edit:
    """A change of the commands that a pattern is found in, by ``re.sub``."""

    pattern: str
    to: str
    why: str


@dataclass(frozen=True)
class Skip:
    """Commands that are not run."""

    pattern: str
    why: str


@dataclass(frozen=True)
class Server:
    """A command that serves until a signal: the rest of its block runs meanwhile."""

    pattern: str
    url: str
    """Answers 200 when it is ready."""
    exit_codes: tuple[int, ...]
    """After SIGTERM."""


EDITS = (
    Edit(r"^make train$", r'make train ARGS="demo --optim.epochs 1"', "ten epochs take a minute"),
    Edit(
        r"(?P<all>ray_jobs/train\.py demo\b(?!.*--optim\.epochs).*)$",
        r"\g<all> --optim.epochs 1",
        "ten epochs take a minute",
    ),
    Edit(
        r"(?P<all>(^python -m shards videos|ray_jobs/shard\.py)(?!.*--(weights|dry_run)).*)$",
        r"\g<all> --detector onnx --weights {world}/clone/detector.onnx",
        "RetinaFace's release is a download, and the clips show drawn faces",
    ),
    Edit(
        r"(?P<all>ray_jobs/(predict|serve)\.py(?!.*--(weights|crops)).*)$",
        r"\g<all> --weights {world}/clone/detector.onnx",
        "the detector that the sets were cut with is no download",
    ),
    Edit(
        r"(?P<all>ray_jobs/\w+\.py (gend|paper)\b(?!.*--model\.backbone).*)$",
        rf"\g<all> {SMALL}",
        "CLIP's weights are a download",
    ),
    Edit(
        r"(?P<all>ray_jobs/\w+\.py (gend|paper)\b.*)$",
        r"\g<all> --optim.epochs 3",
        "thirty epochs of a demonstration",
    ),
    Edit(
        r"(?P<all>ray_jobs/export\.py .*--precisions .*)$",
        r"\g<all> --bound 0.1",
        "after three steps on a few crops the scores lie close together",
    ),
    Edit(
        r"(?P<head>ray_jobs/tune\.py (?!--resume).*)--trials \d+(?P<tail>.*)$",
        r"\g<head>--trials 2\g<tail> --final 0",
        "fewer settings, and no last runs",
    ),
    Edit(r"(?P<head>tune\.py --resume .*)--trials \d+", r"\g<head>--trials 3", "one setting more is enough"),
    Edit(
        r"(?P<head>tune\.py .*)--optim\.epochs 4\b",
        r"\g<head>--optim.epochs 3",
        "the fewest epochs in which a setting can be stopped early",
    ),
    Edit(r"--optim\.epochs 4\b", "--optim.epochs 1", "one epoch is as many commands"),
    Edit(
        r"(?P<head>benchmark step .*)ViT-L-14-quickgelu(?P<tail>.*)$",
        r"\g<head>ViT-B-32\g<tail> --image_size 64 --repeats 1 --no-errors --no-stock",
        "the large tower takes minutes on two cores",
    ),
    Edit(r"https://host/", "http://127.0.0.1:{port}/", "stands for any server"),
    Edit(r" --address http://127\.0\.0\.1:8265\b", "", "the head here has another port"),
    Edit(r"(?<![\w.])/shared/", "{world}/shared/", "stands for the storage that all nodes mount"),
)

SKIPS = (
    Skip(r"^make test$", "runs the tests, which CI does by itself"),
    Skip(r"^pip download\b", "fetches from outside; a stand-in of the file lies ready"),
    Skip(
        r"^(ray (up|down|attach|exec|dashboard|submit|rsync[-_]\w+)|kubectl|helm|docker|aws|gcloud)\b",
        "needs machines that cost money, or Kubernetes",
    ),
)

CLUSTER = r"^ray job\b"
"""Commands that need a cluster; they run with ``--cluster``."""

SERVERS = (Server(r"ray_jobs/serve\.py", "http://127.0.0.1:8000/readyz", (143,)),)

PROGRAMS = ("curl", "make", "python", "ray", "torchrun")
"""What commands may begin with, unless they are skipped."""

PLACEHOLDER = re.compile(r"(?<![\w/.-])\.\.\.(?!\w)|\b[A-Z]{3,}\b(?!=)|<\w+>|\[--")
"""What a user must replace: a command that has it cannot run."""


def edited(text: str, **names: object) -> tuple[str, tuple[str, ...]]:
    """A command as it is run, and why it differs from the page."""
    reasons = []
    for edit in EDITS:
        found = re.sub(edit.pattern, edit.to, text)
        if found != text:
            text, reasons = found, [*reasons, edit.why]
    for name, value in names.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text, tuple(reasons)


def skipped(text: str) -> str | None:
    """Why a command is not run; None: it is."""
    return next((skip.why for skip in SKIPS if re.search(skip.pattern, text)), None)


def server(text: str) -> Server | None:
    """How a command serves, if it does."""
    return next((each for each in SERVERS if re.search(each.pattern, text)), None)


def needs_cluster(text: str) -> bool:
    """Whether it is said to a cluster."""
    return re.search(CLUSTER, text) is not None
