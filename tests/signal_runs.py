"""Short trainings on the sets with a plain signal, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dfdet.config import Augment, Config, Data, Engine, Model, Optim, Run
from dfdet.context import LocalContext
from dfdet.runs.runfolder import FIRST_RANK, RunFolder
from dfdet.train import train


def config_for(sets: dict[str, Path], storage: Path, **values: Any) -> Config:
    return Config(
        run=Run(recipe="test", storage=str(storage), name="run"),
        data=Data(
            train=(str(sets["train"]),),
            val=(f"v={sets['val']}",),
            test=(f"t={sets['test']}",),
            sampling="rotate",
            global_batch=16,
            augment=Augment(strength=0.5),
        ),
        model=Model(backbone="tiny", pretrained=None, image_size=32),
        optim=Optim(lr=2e-2, min_lr=1e-4, epochs=3),
        engine=Engine(precision="fp32", log_every=2, checkpoint_every=2),
    ).replace(values)


def run(config: Config) -> dict[str, Any]:
    folder, _ = RunFolder.claim(config.run.storage, str(config.run.name), config, FIRST_RANK)
    try:
        return train(config, LocalContext(folder))
    finally:
        folder.release()
