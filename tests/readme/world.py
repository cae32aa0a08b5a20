"""Where the commands run: a fresh clone with an environment, in a folder that holds all they write."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.readme.standins import write_standins

ROOT = Path(__file__).parents[2]
TOKEN = "DFDET_README"
"""Variable that marks the processes of a world, by its folder."""
DROPPED = (
    *("RAY_", "DFDET_", "PYTHON", "PYTEST", "VIRTUAL_ENV", "XDG_", "TORCH", "HF_", "OMP_"),
    *("MAKE", "MFLAGS", "GIT_"),
)
"""Variables of the caller that would change what commands do, or lead out of the folder."""


@dataclass(frozen=True)
class World:
    """A temporary folder with a clone in it.

    Its path is short, since Ray's sockets lie below it and have a limit of 107 bytes.
    """

    folder: Path

    @property
    def clone(self) -> Path:
        """The checkout, in which commands run."""
        return self.folder / "clone"

    def environment(self, mark: str = "") -> dict[str, str]:
        """Variables of a command: homes, caches and temporary files lie in the folder."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED)}
        binaries = self.clone / ".venv" / "bin"
        return kept | {
            TOKEN: f"{self.folder}#{mark}",
            "HOME": str(self.folder / "home"),
            "XDG_CACHE_HOME": str(self.folder / "home/.cache"),
            "TMPDIR": str(self.folder / "tmp"),
            "RAY_TMPDIR": str(self.folder / "ray"),
            "RAY_AUTH_MODE": "disabled",  # whatever the caller's home has; the head is on loopback
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "COLUMNS": "120",
        }


@contextmanager
def world(python: Path, *, install: bool, worktree: bool, keep: bool, kept: Path | None) -> Iterator[World]:
    """A world, which is removed at the end.

    Args:
        python: Of an environment with the project's dependencies, which the clone's own is made of.
        install: Make the clone's environment by ``make install``, from the network; ``python`` needs none.
        worktree: Take files as they lie in the working tree, instead of the last commit's.
        keep: Leave it.
        kept: Folder of one that was left, to go on in.
    """
    made = World((kept or Path(tempfile.mkdtemp(prefix="rd"))).absolute())
    try:
        if not made.clone.exists():
            _check_out(made.clone, worktree=worktree)
            for name in ("home", "tmp", "ray"):
                (made.folder / name).mkdir()
            if install:
                subprocess.run(
                    ["make", f"PYTHON={python}", "install"],
                    cwd=made.clone,
                    env=made.environment(),
                    check=True,
                )
            else:
                borrow(python, made.clone)
            write_standins(made.folder)
        yield made
    finally:
        if not keep:
            shutil.rmtree(made.folder, ignore_errors=True)


def _check_out(clone: Path, *, worktree: bool) -> None:
    if subprocess.run(["git", "status"], cwd=ROOT, capture_output=True).returncode != 0:
        _copy_archive(clone)
        return
    if not worktree:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        return
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).exists():  # a deleted file is listed until that is committed
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)


def _copy_archive(clone: Path) -> None:
    """Of an unpacked archive: all but what lies at its top and is not to be committed."""
    ignored = [name.strip("/") for name in (ROOT / ".gitignore").read_text(encoding="utf-8").split()]
    at_top = shutil.ignore_patterns(*ignored)
    shutil.copytree(
        ROOT, clone, ignore=lambda folder, names: at_top(folder, names) if folder == str(ROOT) else []
    )


def borrow(python: Path, clone: Path) -> None:
    """Makes the clone's .venv of another environment's packages, with the clone's own code before them.

    The other's editable install is left out: it would lead to another checkout. ``make install`` finds
    nothing to do.
    """
    venv = clone / ".venv"
    subprocess.run([str(python), "-m", "venv", "--without-pip", str(venv)], check=True)
    own, binaries = _places(venv / "bin" / "python")
    packages, scripts = _places(python)
    (own / "borrowed.pth").write_text(f"{clone}\n{packages}\n")
    for script in scripts.iterdir():
        _borrow_script(script, binaries)
    (venv / ".installed").touch()


def _places(python: Path) -> list[Path]:
    """Folders of an environment's packages and programs."""
    asked = "import sysconfig; print(sysconfig.get_path('purelib')); print(sysconfig.get_path('scripts'))"
    told = subprocess.run([str(python), "-c", asked], check=True, capture_output=True, text=True)
    return [Path(line) for line in told.stdout.splitlines()]


def _borrow_script(script: Path, binaries: Path) -> None:
    """A copy that starts the clone's Python, or a link to what is no script of Python's."""
    target = binaries / script.name
    if target.exists() or script.is_dir():
        return
    content = script.read_bytes()
    if content.startswith(b"#!"):
        before, after = (f"{folder}/python".encode() for folder in (script.parent, binaries))
        target.write_bytes(content.replace(before, after, 1))
        target.chmod(0o755)
    else:
        target.symlink_to(script)
