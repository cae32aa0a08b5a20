"""The whole round of ``ray job submit``: every entry point, its outputs and exit codes, stop, kill, resume.

    python benchmarks/jobs.py [--only train tune shard evaluate predict export serve] [--keep FOLDER]

Starts a Ray head of its own (``tests/ray_jobs/jobs.py``), submits small jobs with the real command line and
prints a Markdown table: how Ray says that each job ended, the exit code of its driver, and whether that and
what lies in the home folder are as they should be. Exits 1 if anything is not. A quarter of an hour on
two cores.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import httpx
import psutil
from job_round import KILLED, RAN, REFUSED, STOPPED, Grown, Round
from kill_runs import NAME, arguments, build_sets, difference, sets_in

from dfdet.runs.runfolder import read_metrics
from tests.dfdet.serving.bundles import make
from tests.ray_jobs.jobs import PATIENCE_S, Head, Job, free_ports
from tests.shards.clips import files, write_ffpp
from tests.signal_runs import config_for, run

SPACE = "replace: true\ndimensions:\n  optim.lr: {low: 1.0e-3, high: 5.0e-2, log: true}\n"


def _sets(at: Round) -> dict[str, Path]:
    if not (at.folder / "sets").exists():
        build_sets(at.folder / "sets")
    return sets_in(at.folder / "sets")


def _steps(run: Path) -> int:
    return max((record.get("step", 0) for record in read_metrics(run / "metrics.jsonl")), default=0)


def _count(folder: Path, pattern: str) -> int:
    return sum(path.is_file() for path in folder.rglob(pattern)) if folder.exists() else 0


def train(at: Round) -> None:
    """Batches, losses, weights, moments and metrics are those of an undisturbed run, bit for bit."""
    out, sets = at.head.outputs, _sets(at)
    words = {
        name: [*arguments(sets, Path(name)), "--optim.epochs", 24, "--engine.checkpoint_every", 20]
        for name in ("whole", "disturbed")
    }
    whole = at.submit("train", "whole", *words["whole"])
    whole.ended()
    status = json.loads((out / "whole" / NAME / "result.json").read_text())["status"]
    at.tell("train", "undisturbed", whole, RAN, "" if status == "finished" else status)
    again = at.submit("train", "again", *words["whole"])
    again.ended()
    at.tell("train", "finished, again", again, RAN, _lacks(again, "already finished; its result:"))

    disturbed = out / "disturbed" / NAME
    third = at.disturbed("train", words["disturbed"], Grown(lambda: _steps(disturbed), 30))
    at.tell("train", "same name, to the end", third, RAN, difference(out / "whole" / NAME, disturbed))

    busy = [*arguments(sets, Path("busy")), "--optim.epochs", 400]
    first = at.submit("train", "busy", *busy)
    first.until(lambda: _steps(out / "busy" / NAME))
    second = at.submit("train", "second", *busy)
    second.ended()
    at.stop(first)
    at.tell("train", "same name at once", second, REFUSED, _lacks(second, "in use by process"))


def tune(at: Round) -> None:
    """Every setting is ended once; none is lost or tried twice."""
    sets = _sets(at)
    space = at.folder / "space.yaml"
    space.write_text(SPACE)
    settings = [*arguments(sets, Path("sweeps")), "--run.workers", 1, "--optim.epochs", 16]
    words = [*settings, "--space", space, "--trials", 3, "--concurrent", 2, "--final", 1, "--final_seeds", 1]
    sweep = at.head.outputs / "sweeps" / NAME
    # in the middle of a training; after the stop, in one that goes on
    begun = Grown(lambda: sum(map(_steps, sweep.glob("0*"))), 20)
    again = ["--resume", NAME, "--run.storage", "sweeps"]
    third = at.disturbed("tune", words, begun, again)
    at.tell("tune", "--resume, to the end", third, RAN, _sweep_problem(sweep))
    ended = at.submit("tune", "again", *again)
    ended.ended()
    at.tell("tune", "finished, again", ended, RAN, _lacks(ended, "best config: "))


def _sweep_problem(sweep: Path) -> str:
    with (sweep / "trials.csv").open() as file:
        states = [row["state"] for row in csv.DictReader(file)]
    if len(states) != 3 or not {"complete"} <= set(states) <= {"complete", "pruned"}:
        return f"settings: {states}"
    return "" if (sweep / "best.json").exists() else "no best.json"


def shard(at: Round) -> None:
    """The bytes are those of an undisturbed job."""
    given = ["--dataset", "ffpp", "--root", write_ffpp(at.folder / "ffpp")]
    given += [
        "--detector",
        "onnx",
        "--weights",
        at.made.weights,
        "--frames",
        4,
        "--size_px",
        64,
        "--workers",
        1,
    ]
    out = at.head.outputs
    whole = at.submit("shard", "whole", *given, "--out", "shards/whole")
    whole.ended()
    at.tell("shard", "undisturbed", whole, RAN, "" if files(out / "shards/whole") else "no set")
    parts = Grown(lambda: _count(out / "shards/disturbed", "*"), 3)
    third = at.disturbed("shard", [*given, "--out", "shards/disturbed"], parts)
    equal = files(out / "shards/disturbed") == files(out / "shards/whole")
    at.tell("shard", "same command, to the end", third, RAN, "" if equal else "other bytes")
    again = at.submit("shard", "again", *given, "--out", "shards/disturbed")
    again.ended()
    at.tell("shard", "finished, again", again, RAN, _lacks(again, "ffpp-c23-train.json"))


def evaluate(at: Round) -> None:
    """The scores of every frame are those of an undisturbed job."""
    sets, out = _sets(at), at.head.outputs
    run(config_for(sets, at.folder / "signal"))
    given = ["--checkpoint", at.folder / "signal/run", "--test", *(f"{name}={sets[name]}" for name in sets)]
    given += ["--robustness", "all", "--batch", 1, "--workers", 1]
    whole = at.submit("evaluate", "whole", *given, "--out", "evaluated/whole")
    whole.ended()
    scores = _contents(out / "evaluated/whole", "*.parquet")
    at.tell("evaluate", "undisturbed", whole, RAN, "" if scores else "no scores")
    again = at.submit("evaluate", "again", *given, "--out", "evaluated/whole")
    again.ended()
    at.tell("evaluate", "finished, again", again, RAN, _lacks(again, "already finished; its result:"))
    parts = Grown(lambda: _count(out / "evaluated/disturbed/parts", "*.npz"))
    third = at.disturbed("evaluate", [*given, "--out", "evaluated/disturbed"], parts)
    equal = _contents(out / "evaluated/disturbed", "*.parquet") == scores
    at.tell("evaluate", "same --out, to the end", third, RAN, "" if equal else "other scores")


def predict(at: Round) -> None:
    """The results are those of an undisturbed job."""
    for copy in range(8):  # to take longer than `ray job stop` does
        write_ffpp(at.folder / f"clips/{copy}")
    given = [at.folder / "clips", "--checkpoint", at.made.checkpoint, "--detector", "onnx"]
    given += ["--weights", at.made.weights, "--workers", 1]
    out = at.head.outputs
    whole = at.submit("predict", "whole", *given, "--out", "found/whole")
    whole.ended()
    lines = _contents(out / "found/whole", "predictions.*")
    at.tell("predict", "undisturbed", whole, RAN, "" if len(lines) == 2 else "no results")
    file = out / "found/disturbed/predictions.jsonl"
    found = Grown(lambda: file.read_bytes().count(b"\n") if file.exists() else 0)
    third = at.disturbed("predict", [*given, "--out", "found/disturbed"], found)
    equal = _contents(out / "found/disturbed", "predictions.*") == lines
    at.tell("predict", "same --out, to the end", third, RAN, "" if equal else "other results")


def export(at: Round) -> None:
    """A stopped export leaves nothing; the bytes are those of an undisturbed one."""
    given = ["--checkpoint", at.made.checkpoint, "--crops", 16]
    out = at.head.outputs
    whole = at.submit("export", "whole", *given, "--out", "bundles/whole")
    whole.ended()
    bundle = _contents(out / "bundles/whole", "*")
    at.tell("export", "undisturbed", whole, RAN, "" if "model.onnx" in bundle else "no bundle")
    stopped = at.submit("export", "to be stopped", *given, "--out", "bundles/disturbed")
    stopped.until(lambda: "writing model.onnx" in stopped.logs())
    at.stop(stopped)
    left = [path.name for path in (out / "bundles").iterdir() if path.name != "whole"]
    at.tell("export", "ray job stop", stopped, STOPPED, f"left: {left}" if left else "")
    third = at.submit("export", "to the end", *given, "--out", "bundles/disturbed")
    third.ended()
    equal = _contents(out / "bundles/disturbed", "*") == bundle
    at.tell("export", "same command, to the end", third, RAN, "" if equal else "other bytes")
    again = at.submit("export", "again", *given, "--out", "bundles/whole")
    again.ended()
    at.tell("export", "finished, again", again, REFUSED, _lacks(again, "exists and is not empty"))


def serve(at: Round) -> None:
    """It answers, and however it ends, no replica is left."""
    for case, expected in (("ray job stop", STOPPED), ("driver killed", KILLED)):
        [port] = free_ports(1)
        given = ["--bundle", at.made.bundle, "--detector", "onnx", "--weights", at.made.weights]
        server = at.submit("serve", case, *given, "--port", port)
        server.until(lambda job=server: "serving at " in job.logs())
        url, kind = f"http://127.0.0.1:{port}/v1/predict", {"Content-Type": "video/mp4"}
        clip = (at.made.clips / "0.mp4").read_bytes()
        answer = httpx.post(url, content=clip, headers=kind, timeout=PATIENCE_S)
        problem = "" if answer.status_code == 200 else f"answered {answer.status_code}"
        replicas = at.head.processes("ServeReplica")
        at.stop(server) if expected == STOPPED else server.kill()
        left = psutil.wait_procs(replicas, timeout=60)[1]
        at.tell("serve", f"answers; {case}", server, expected, problem or (f"left: {left}" if left else ""))


BAD = {
    "train": "demo --optim.epoch 3",
    "tune": "demo --space nowhere.yaml",
    "shard": "--dataset ffpp --root nowhere --out shards/refused",
    "evaluate": "--checkpoint nowhere --test v=nowhere.json",
    "predict": "--checkpoint nowhere nowhere.mp4",
    "export": "--checkpoint nowhere --out bundles/refused",
    "serve": "--bundle nowhere",
}
ROUNDS = {each.__name__: each for each in (train, tune, shard, evaluate, predict, export, serve)}


def refused(at: Round, program: str) -> None:
    """Bad input: code 2, and one line that is the last."""
    job = at.submit(program, "bad", *BAD[program].split())
    job.ended()
    line = job.last_line()
    at.tell(program, "bad input", job, REFUSED, "" if line.startswith("error: ") else f"last line: {line}")


def _lacks(job: Job, text: str) -> str:
    return "" if text in job.logs() else f"does not say {text!r}: {job.last_line()}"


def _contents(folder: Path, pattern: str) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob(pattern)
        if path.is_file()
    }


def main() -> int:
    """Runs the rounds, prints the table, exits 1 if anything is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ROUNDS, default=list(ROUNDS))
    parser.add_argument("--keep", type=Path, help="folder for all outputs, kept for a look at them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.keep or Path(temporary)).absolute()
        head = Head(folder / "home")
        try:
            at = Round(head, folder, make(folder / "made"))
            for program in options.only:
                refused(at, program)
                ROUNDS[program](at)
        finally:
            left = head.end()
    print("\n| job | case | Ray says | exit code | outputs |\n|---|---|---|---|---|")
    for row in at.rows:
        print("| " + " | ".join(row) + " |")
    print(f"\n{len(at.rows)} cases, {at.bad} not as they should be; processes left: {len(left)}")
    return 1 if at.bad or left else 0


if __name__ == "__main__":
    sys.exit(main())
