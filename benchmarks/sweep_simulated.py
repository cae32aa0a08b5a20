"""Does TPE with ASHA find a good setting in fewer epochs than random search? A simulation, no training.

    python benchmarks/sweep_simulated.py [--seeds 24] [--epochs 600] [--workers 4] [--png FOLDER]

The objective is analytic, of the kind that a sweep meets: a validation AUROC that rises over 10 epochs
towards an asymptote of nine dimensions (learning rate, uniformity, alignment, label smoothing, crop
scale, augmentation strength, the kind of head, and under a margin head its margin and scale), with a
noise of the seed that stays through training and one of each evaluation. Low learning rates converge
late, so that early epochs mislead: there are two objectives, one in which they do so a little and one in
which they do so much, both described by the rank correlation of random settings' scores after 1, 3 and 9
epochs with what they end at. Workers are simulated by events: each trains one epoch in one unit of time,
and asks for the next setting when its own has ended. Sampler and pruner are the sweep's own.

A search is judged by the *true* value (no noise, last epoch) of the setting that it would name: the best
by its own noisy score among those trained to the end. Medians over seeds with their 95 % bootstrap
intervals; a search that never gets there counts as more than the budget.
"""

from __future__ import annotations

import argparse
import heapq
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from simulated_objective import CHANCE, EPOCHS, EVALUATION_NOISE, OBJECTIVES, SEED_NOISE, SPACE, Objective

from dfdet.recipes import demo
from dfdet.sweep.samplers import build_pruner, build_sampler

NEAR = (0.03, 0.02)
SEARCHES = {
    "random": ("random", "none", 1),
    "random + ASHA": ("random", "asha", 1),
    "TPE": ("tpe", "none", 1),
    "TPE + ASHA": ("tpe", "asha", 1),
    "TPE + ASHA from 3": ("tpe", "asha", 3),
    "joint TPE + ASHA": ("tpe-joint", "asha", 1),
}
"""Sampler, pruner and the first epoch at which it may stop a setting."""


# ---------------------------------------------------------------- simulation


@dataclass
class Course:
    """What a search would name, by the epochs spent in all."""

    spent: list[int] = field(default_factory=list)
    true: list[float] = field(default_factory=list)
    begun: int = 0
    ended: int = 0
    """Settings trained to their last epoch."""
    best_score: float = -math.inf

    def add(self, spent: int, score: float, true: float) -> None:
        """A setting trained to its end."""
        self.ended += 1
        if score > self.best_score:
            self.best_score = score
            self.spent.append(spent)
            self.true.append(true)

    def at(self, spent: int) -> float:
        """True value of the setting named after so many epochs; chance before there is one."""
        place = bisect_right(self.spent, spent)
        return self.true[place - 1] if place else CHANCE

    def until(self, value: float) -> float:
        """Epochs until a setting of this true value is named for the first time; infinite if never."""
        return next(
            (spent for spent, true in zip(self.spent, self.true, strict=True) if true >= value), math.inf
        )


@dataclass
class Running:
    """A setting that a worker trains."""

    objective: Objective
    trial: optuna.Trial
    values: dict[str, Any]
    noise: np.random.Generator
    luck: float
    """Of its seed, in every score."""
    epoch: int = 0

    def train(self) -> float:
        """One more epoch; gives its score."""
        self.epoch += 1
        true = self.objective.true_value(self.values, self.epoch)
        return true + self.luck + self.noise.normal(0, EVALUATION_NOISE)


def simulate(objective: Objective, search: str, seed: int, budget: int, workers: int) -> Course:
    """One search.

    Args:
        objective: What is searched.
        search: Name in ``SEARCHES``.
        seed: Of the search and of all noise.
        budget: Epochs over all workers.
        workers: Settings trained side by side.
    """
    sampler, pruner, min_epochs = SEARCHES[search]
    study = optuna.create_study(
        direction="maximize", pruner=build_pruner(pruner, EPOCHS, min_epochs=min_epochs)
    )
    base, course = demo(), Course()

    def begin() -> Running:
        study.sampler = build_sampler(sampler, SPACE, seed, course.begun)
        trial = study.ask()
        course.begun += 1
        noise = np.random.default_rng([seed, trial.number])
        return Running(objective, trial, SPACE.suggest(trial, base), noise, noise.normal(0, SEED_NOISE))

    running = {worker: begin() for worker in range(workers)}
    events = [(1, worker) for worker in running]  # end of an epoch, and whose
    for spent in range(1, budget + 1):
        now, worker = heapq.heappop(events)
        setting = running[worker]
        score = setting.train()
        setting.trial.report(score, setting.epoch)
        if setting.epoch == EPOCHS:
            study.tell(setting.trial, score)
            course.add(spent, score, objective.true_value(setting.values, EPOCHS))
            running[worker] = begin()
        elif setting.trial.should_prune():
            study.tell(setting.trial, state=optuna.trial.TrialState.PRUNED)
            running[worker] = begin()
        heapq.heappush(events, (now + 1, worker))
    return course


# ---------------------------------------------------------------- table


def median_interval(sample: Sequence[float]) -> tuple[float, float, float]:
    """Median and its 95 % bootstrap interval (2000 draws)."""
    values = np.asarray(sample, float)
    draws = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    # by sorting, since half of two infinite numbers is no number
    medians = np.sort(np.sort(values[draws], axis=1)[:, len(values) // 2])
    return float(np.sort(values)[len(values) // 2]), float(medians[50]), float(medians[-51])


def shown(sample: Sequence[float], form: Callable[[float], str]) -> str:
    """``median (low to high)``."""
    middle, low, high = median_interval(sample)
    return f"{form(middle)} ({form(low)} to {form(high)})"


def show_epochs(courses: dict[str, list[Course]], best: float, budget: int) -> None:
    """Prints the epochs until a setting near the optimum is named."""
    print(
        "\nEpochs over all workers until the named setting is within x of the optimum, and random's / its own"
    )
    print(f"{'search':<18}{'x':>6}  {'epochs':<24}{'reached':>8}{'ratio':>8}")
    for x in NEAR:
        until = {name: [course.until(best - x) for course in of] for name, of in courses.items()}
        for name, epochs in until.items():
            reached = sum(map(math.isfinite, epochs))
            text = shown(epochs, lambda value: f"{value:.0f}" if math.isfinite(value) else f">{budget}")
            own, other = median_interval(epochs)[0], median_interval(until["random"])[0]
            ratio = f"{min(other, budget) / own:.2f}" if math.isfinite(own) else "-"
            ratio = f">{ratio}" if math.isinf(other) and ratio != "-" else ratio
            print(f"{name:<18}{x:>6}  {text:<24}{f'{reached}/{len(epochs)}':>8}{ratio:>8}")


def show_values(courses: dict[str, list[Course]], best: float, budget: int) -> None:
    """Prints how far below the optimum the named setting is at equal epochs."""
    print("\nTrue AUROC of the named setting below the optimum at equal epochs (in thousandths), and the")
    print("seeds in which it is the better one than random's")
    print(f"{'search':<18}{'epochs':>7}  {'below the optimum':<24}{'gain on random':<24}{'better':>8}")
    for spent in (budget // 4, budget // 2, budget):
        random_true = [course.at(spent) for course in courses["random"]]
        for name, of in courses.items():
            true = [course.at(spent) for course in of]
            gain = [own - other for own, other in zip(true, random_true, strict=True)]
            below = shown([1000 * (best - value) for value in true], lambda value: f"{value:.1f}")
            text = shown([1000 * value for value in gain], lambda value: f"{value:+.1f}")
            wins = f"{sum(value > 0 for value in gain)}/{len(gain)}"
            print(
                f"{name:<18}{spent:>7}  {below:<24}{'' if name == 'random' else text:<24}"
                f"{'' if name == 'random' else wins:>8}"
            )


def draw(courses: dict[str, list[Course]], best: float, budget: int, path: Path) -> None:
    """Median distance to the optimum by epochs, with the middle half of the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    spent = np.arange(4 * EPOCHS, budget + 1)
    for name, of in courses.items():
        below = np.array([[best - course.at(int(now)) for now in spent] for course in of])
        low, middle, high = np.quantile(below, [0.25, 0.5, 0.75], axis=0)
        (line,) = axes.plot(spent, middle, label=name)
        axes.fill_between(spent, low, high, alpha=0.15, color=line.get_color())
    axes.set(yscale="log", xlabel="epochs over all workers", ylabel="true AUROC below the optimum")
    axes.legend()
    figure.savefig(path, dpi=120)


def compare(objective: Objective, args: argparse.Namespace) -> None:
    """Simulates all searches of an objective and prints its tables."""
    best = objective.optimum()
    after = ", ".join(f"{value:.2f}" for value in objective.correlations())
    print(f"\n=== {objective.name}: rank correlation after 1, 3, 9 epochs {after}; the optimum is {best:.4f}")
    courses: dict[str, list[Course]] = {}
    for name in SEARCHES:
        courses[name] = [
            simulate(objective, name, seed, args.epochs, args.workers) for seed in range(args.seeds)
        ]
        begun = shown([course.begun for course in courses[name]], lambda value: f"{value:.0f}")
        ended = shown([course.ended for course in courses[name]], lambda value: f"{value:.0f}")
        print(f"{name:<18}  settings begun {begun:<18}  trained to the end {ended}")
    show_epochs(courses, best, args.epochs)
    show_values(courses, best, args.epochs)
    if args.png:
        draw(courses, best, args.epochs, args.png / f"{objective.name.replace(' ', '-')}.png")


def main() -> None:
    """Runs the comparison for each objective."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=600, help="budget over all workers (epochs)")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--png", type=Path, help="folder for the curves")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    began = time.process_time()
    print(f"{args.seeds} seeds, {args.epochs} epochs, {args.workers} workers")
    for objective in OBJECTIVES:
        compare(objective, args)
    print(f"\n{time.process_time() - began:.0f} s of CPU")


if __name__ == "__main__":
    main()
