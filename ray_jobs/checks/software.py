"""Judges software: packages, sources and imports, node by node against the driver's."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from ray_jobs.checks.finding import Finding, Problem, of_error, rows

Answers = Mapping[str, Mapping[str, Any]]
"""What a probe told, by the name of the node."""

MUST_BE_EQUAL = ("ray", "torch", "deepspeed")
"""Ranks of a run speak to each other through these."""
SHOWN = ("ray", "torch", "deepspeed", "open_clip_torch", "numpy")
SHIP = (
    "submit from the checkout with `ray job submit --working-dir . -- python ray_jobs/...`, which brings its"
    " code to every node, or install the same commit there"
)


def judge(machines: Answers, driver: str, needed: Collection[str]) -> list[Finding]:
    """Rows on Python, packages and the project's own sources.

    Args:
        machines: Answers of ``probe_machine.machine``.
        driver: Name of the driver's node, to which the others are compared.
        needed: Nodes that the run would use.
    """
    reference = machines[driver]
    every = machines.items()
    packages = {name: _packages(answer["packages"], reference["packages"]) for name, answer in every}
    own = ", ".join(f"{name} {reference['packages'][name]}" for name in SHOWN)
    return [
        *rows(
            "Python",
            {name: _python(answer["python"], reference["python"]) for name, answer in every},
            reference["python"],
            needed,
        ),
        *rows("packages", packages, f"{own}, {len(reference['packages']) - len(SHOWN)} more", needed),
        *rows(
            "code",
            {name: _code(answer["code"], reference["code"]) for name, answer in every},
            f"dfdet and ray_jobs are the driver's ({str(reference['code']['dfdet'])[:8]})",
            needed,
        ),
    ]


def _python(found: str, expected: str) -> list[Problem]:
    if found == expected:
        return []
    return [Problem("warn", f"{found}, the driver has {expected}", f"install Python {expected} there")]


def _packages(found: Mapping[str, str | None], expected: Mapping[str, str | None]) -> list[Problem]:
    problems = []
    for name, version in found.items():
        wanted = expected[name]
        remedy = f"on that node: pip install {name}{f'=={wanted}' if wanted else ' -c constraints.txt'}"
        if version is None:
            problems.append(Problem("FAIL", f"{name} is not installed", remedy))
        elif wanted is not None and version != wanted:
            state: Any = "FAIL" if name in MUST_BE_EQUAL else "warn"
            problems.append(Problem(state, f"{name} {version}, the driver has {wanted}", remedy))
    return problems


def _code(found: Mapping[str, str | None], expected: Mapping[str, str | None]) -> list[Problem]:
    absent = [name for name, digest in found.items() if digest is None]
    if absent:
        return [Problem("FAIL", f"{' and '.join(absent)} cannot be found", SHIP)]
    stale = [f"{name} {str(found[name])[:8]}" for name in found if found[name] != expected[name]]
    return [Problem("FAIL", f"{' and '.join(stale)}: not the driver's source files", SHIP)] if stale else []


def judge_tried(tried: Answers, backbone: str) -> list[Finding]:
    """A row for each step of ``probe_software.try_out``; a cause that several steps meet is told once.

    Args:
        tried: Its answers.
        backbone: What to call the backbone.
    """
    well = {"imports": "dfdet, DeepSpeed and what a training worker needs", "backbone": backbone}
    found: list[Finding] = []
    told: dict[str, set[str]] = {name: set() for name in tried}
    for step in {step: None for answer in tried.values() for step in answer["tried"]}:
        new = {
            name: message
            for name, answer in tried.items()
            if (message := answer["tried"].get(step)) and message not in told[name]
        }
        failed = {name for name, answer in tried.items() if answer["tried"].get(step)}
        problems = {
            name: [_failed(step, new[name])] if name in new else []
            for name in tried
            if name in new or name not in failed
        }
        found += rows(step, problems, well.get(step, "works"))
        for name, message in new.items():
            told[name].add(message)
    return found


def _failed(step: str, message: str) -> Problem:
    if step != "imports" and "; " in message:
        return of_error(message)
    remedy = "install the versions of constraints.txt there: pip install -c constraints.txt ."
    if step == "CUDA":
        remedy = "compare nvidia-smi there with the CUDA of torch; a newer driver, or --run.device cpu"
    return Problem("FAIL", message, remedy)
