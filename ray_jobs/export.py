"""Writes a checkpoint as a bundle: weights, ONNX and torch graphs, preprocessing, threshold, model card.

    python ray_jobs/export.py --checkpoint runs/NAME --out BUNDLE
    python ray_jobs/export.py --checkpoint runs/NAME --out BUNDLE --precisions int8 --hugging_face --triton
    ray job submit --working-dir . -- python ray_jobs/export.py --checkpoint C --out BUNDLE

Every graph is read back and compared with the checkpoint on crops of a validation set; one that
differs ends the export, which then leaves nothing. It runs in this process, on its CPUs: Ray is not started.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dfdet.cli import parse_flags
from dfdet.config import named_sets
from dfdet.errors import DfdetError
from dfdet.export.bundle import Shown, write_bundle
from dfdet.export.request import Options, open_request
from ray_jobs.cluster import absolute, absolute_source
from shards.names import printable
from shards.progress import show_progress


def main(argv: list[str]) -> int:
    """Runs the command line; gives the exit code (0 done, 2 bad input, 1 failure, 130/143 signals)."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    try:
        options = parse_flags(Options, argv, "export.py", switches=True)
        with _sigterm_as_exit():
            return run(with_absolute_paths(options))
    except DfdetError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing was left", file=sys.stderr)
        return 130


def with_absolute_paths(options: Options) -> Options:
    """The options with every path absolute; URLs and ``hf:`` names as they are."""
    named = named_sets(options.val)
    return options.model_copy(
        update={
            "checkpoint": absolute_source(options.checkpoint),
            "out": absolute(options.out),
            "val": tuple(f"{name}={absolute(path)}" if path else name for name, path in named.items()),
            "evaluation": absolute(options.evaluation) if options.evaluation else None,
            "pretrained": absolute(options.pretrained) if options.pretrained else None,
        }
    )


def run(options: Options) -> int:
    """Checks, writes, tells."""
    request = open_request(options)
    opened, fitted = request.opened, request.threshold
    threshold = f"{fitted.threshold:.4f} (set {fitted.set_name})" if fitted else "none"
    print(f"model: {opened.config.model.backbone} of {request.name} ({opened.fingerprint[:12]})")
    print(f"threshold: {threshold}")
    for note in request.notes:
        print(f"note: {note}")
    out = write_bundle(request, Shown(lambda line: print(line, flush=True), show_progress))
    print(f"bundle: {out}")
    return 0


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """SIGTERM ends as an interrupt does: nothing is left of the bundle."""
    former = signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
