"""Writes a checkpoint as a bundle: weights, ONNX and torch graphs, preprocessing, threshold, model card.

    python ray_jobs/export.py --checkpoint runs/NAME --out BUNDLE
    python ray_jobs/export.py --checkpoint runs/NAME --out BUNDLE --precisions int8 --hugging_face --triton
    ray job submit --working-dir . -- python ray_jobs/export.py --checkpoint C --out BUNDLE

Every graph is read back and compared with the checkpoint on crops of a validation set; one that
differs ends the export, which then leaves nothing. It runs in this process, on its CPUs: Ray is not started.
"""

from __future__ import annotations

import logging
import sys

from dfdet.cli import parse_flags
from dfdet.config import named_sets
from dfdet.export.bundle import Shown, write_bundle
from dfdet.export.request import Options, open_request
from ray_jobs.cluster import absolute, absolute_out, absolute_source
from ray_jobs.exits import exit_code, sigterm_as_exit
from shards.progress import show_progress


def main(argv: list[str]) -> int:
    """Runs the command line; gives the exit code (0 done, 2 bad input, 1 failure, 130/143 signals)."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    with sigterm_as_exit():  # nothing is left of the bundle
        return exit_code(
            lambda: run(with_absolute_paths(parse_flags(Options, argv, "export.py", switches=True))),
            "stopped; nothing was left",
        )


def with_absolute_paths(options: Options) -> Options:
    """The options with every path absolute; URLs and ``hf:`` names as they are."""
    named = named_sets(options.val)
    return options.model_copy(
        update={
            "checkpoint": absolute_source(options.checkpoint),
            "out": absolute_out(options.out),
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
