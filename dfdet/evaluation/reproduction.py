"""The paper's table, ours beside it: which sets, which runs, and what their evaluation says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from pydantic import Field, ValidationError

from dfdet.config import Section
from dfdet.errors import ConfigError
from dfdet.evaluation.report.published_rows import PUBLISHED, match
from dfdet.evaluation.seeds import t_interval
from dfdet.schema import Manifest

PUBLISHED_AS = {
    "linear_probe": "linear probe",
    "ln": "LN-tuning",
    "ln_norm": "LN + L2 norm",
    "paper": "full method",
    "gend": "LNCLIP-DF (GenD)",
}
"""Recipes, and the rows of papers that they repeat."""

RecipeName = Literal["linear_probe", "ln", "ln_norm", "paper", "gend"]


class Options(Section):
    """Flags of ``reproduce.py``; those with a dot are the training's."""

    shards: str
    """Folder of shard sets, searched for manifests: FF++ trains, the rest tests, by their splits."""
    rows: tuple[RecipeName, ...] = Field(("linear_probe", "ln", "ln_norm", "paper", "gend"), min_length=1)
    """Recipes to train."""
    seeds: int = Field(3, ge=1)
    """Runs of each (seeds)."""
    out: str = "reproduction"
    """Folder of runs, evaluation and table; given again, it goes on."""


@dataclass(frozen=True)
class Sets:
    """Manifests by their use."""

    train: tuple[Path, ...]
    val: dict[str, Path]
    test: dict[str, Path]


@dataclass(frozen=True)
class Planned:
    """A run to train."""

    recipe: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder, and its label in the evaluation."""
        return f"{self.recipe}-s{self.seed}"


def plan(options: Options) -> list[Planned]:
    """All runs, seed by seed, so that a table of all rows is there early."""
    return [Planned(recipe, seed) for seed in range(options.seeds) for recipe in options.rows]


def find_sets(root: Path) -> Sets:
    """The shard sets below a folder: FF++ (else whatever has a training split) trains, as in the papers.

    Raises:
        ConfigError: A split is missing.
    """
    found: dict[str, list[tuple[Path, Manifest]]] = {"train": [], "val": [], "test": []}
    for path in sorted(root.rglob("*.json")):
        manifest = _manifest(path)
        if manifest is not None and manifest.split in found:
            found[manifest.split].append((path, manifest))
    for split in ("train", "val"):
        ours = [entry for entry in found[split] if entry[1].dataset.startswith("ffpp")]
        found[split] = ours or found[split]
    for split, entries in found.items():
        if not entries:
            raise ConfigError(
                f"--shards {root}: no finished set of split {split}; build sets with ray_jobs/shard.py, or"
                " point at the folder that holds their NAME.json"
            )
    return Sets(tuple(path for path, _ in found["train"]), _named(found["val"]), _named(found["test"]))


def _manifest(path: Path) -> Manifest | None:
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _named(entries: Sequence[tuple[Path, Manifest]]) -> dict[str, Path]:
    """By the dataset's name, where one has several sets by the set's."""
    counts = Counter(manifest.dataset for _, manifest in entries)
    return {
        manifest.dataset if counts[manifest.dataset] == 1 else manifest.name: path
        for path, manifest in entries
    }


@dataclass(frozen=True)
class Entry:
    """Video AUROC (%) of a recipe on a test set."""

    recipe: str
    test: str
    runs: int
    value: float | None
    low: float | None
    high: float | None
    """Student's 95 % interval over seeds; of one run, its bootstrap interval over identities."""
    published: float | None

    def shown(self) -> str:
        """As a cell of the table."""
        if self.value is None:
            return "-"
        interval = "" if self.low is None else f" ({self.low:.1f} to {self.high:.1f})"
        return f"{self.value:.2f}{interval}" + (f", published {self.published:.2f}" if self.published else "")


def entries(result: dict[str, Any], planned: Sequence[Planned]) -> list[Entry]:
    """The table of an evaluation's ``result.json``; rows as planned, test sets and their mean."""
    known = result["checkpoints"]
    recipes = dict.fromkeys(run.recipe for run in planned)
    tests = [*result["request"]["test"], *(["macro"] if len(result["request"]["test"]) > 1 else [])]
    return [
        _entry(recipe, test, [known[run.name]["metrics"] for run in planned if run.recipe == recipe])
        for recipe in recipes
        for test in tests
    ]


def _entry(recipe: str, test: str, runs: Sequence[dict[str, float | None]]) -> Entry:
    name = f"test/{test}/video/auroc"
    values = [100 * value for run in runs if (value := run.get(name)) is not None]
    published = next(row for row in PUBLISHED if row.method == PUBLISHED_AS[recipe]).auroc.get(
        match(test) or ""
    )
    if not values:
        return Entry(recipe, test, len(runs), None, None, None, published)
    low, high = t_interval(values) or _own_interval(runs[0], name)
    return Entry(recipe, test, len(runs), fmean(values), low, high, published)


def _own_interval(run: dict[str, float | None], name: str) -> tuple[float | None, float | None]:
    low, high = run.get(f"{name}_low"), run.get(f"{name}_high")
    return (None, None) if low is None or high is None else (100 * low, 100 * high)


def markdown(found: Sequence[Entry]) -> str:
    """The table, and what its intervals mean."""
    tests = list(dict.fromkeys(entry.test for entry in found))
    lines = ["| video AUROC, % | " + " | ".join(tests) + " |", "|---" * (len(tests) + 1) + "|"]
    for recipe in dict.fromkeys(entry.recipe for entry in found):
        cells = [entry.shown() for entry in found if entry.recipe == recipe]
        lines.append(f"| {recipe} ({PUBLISHED_AS[recipe]}) | " + " | ".join(cells) + " |")
    runs = found[0].runs if found else 0
    meaning = f"Student's over {runs} seeds" if runs > 1 else "a bootstrap's over identities, of one run"
    return "\n".join(
        [*lines, "", f"Intervals (95 %) are {meaning}. Published: arXiv 2503.19683, 2508.06248v1.", ""]
    )


def to_json(found: Sequence[Entry]) -> str:
    """The table as JSON."""
    return json.dumps([vars(entry) for entry in found], indent=2) + "\n"
