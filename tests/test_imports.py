"""Directions of imports, and what is never loaded: torch and Ray by light modules, code by data."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("dfdet", "shards", "ray_jobs")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LIGHT = ("dfdet.config", "dfdet.schema", "dfdet.recipes", "dfdet.training.schedule", "dfdet.data.plan")
HEAVY = ("torch", "ray", "deepspeed")
LOADERS = ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST, package: str = "") -> set[str]:
    """Modules that a file imports, those inside functions too; ``from a import b`` gives a and a.b."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], base])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return found


def imported_by(path: Path) -> set[str]:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return imports(ast.parse(path.read_text(encoding="utf-8")), package)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def offenders(folder: str, *forbidden: str) -> list[str]:
    return [
        f"{name_of(path)}: {module}"
        for path in FILES
        if within(".".join(path.relative_to(ROOT).parts), folder)
        for module in sorted(imported_by(path))
        if any(within(module, package) for package in forbidden)
    ]


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """Dotted names that are called, with the names that imports gave them undone."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            head, dot, rest = ast.unparse(node.func).partition(".")
            found.append((names.get(head, head) + dot + rest, node))
    return found


def unsafe(tree: ast.AST) -> list[str]:
    """Calls that run code from a file, or may."""
    found = []
    for name, call in calls(tree):
        keywords = {word.arg: ast.unparse(word.value) for word in call.keywords}
        package, _, leaf = name.rpartition(".")
        if (
            (package in LOADERS and leaf in {"load", "loads", "open", "Unpickler"})
            or (name == "torch.load" and keywords.get("weights_only") != "True")
            or (package == "yaml" and leaf in {"load", "load_all", "unsafe_load", "full_load"})
            or (leaf in {"load", "read_array"} and keywords.get("allow_pickle") == "True")
            or name in {"eval", "exec"}
        ):
            found.append(f"{call.lineno}: {name}")
    return found


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_loads_neither_torch_nor_ray(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_there_are_files_to_look_at() -> None:
    assert {"dfdet/config.py", "shards/sets/write.py", "ray_jobs/train.py"} < set(map(name_of, FILES))


def test_dfdet_imports_neither_ray_nor_the_other_packages() -> None:
    assert offenders("dfdet", "ray", "shards", "ray_jobs") == []


def test_shards_imports_neither_ray_nor_its_jobs() -> None:
    assert offenders("shards", "ray", "ray_jobs") == []


def test_shards_imports_of_dfdet_only_schema_and_errors() -> None:
    allowed = ("dfdet.schema", "dfdet.errors")
    found = [
        f"{name_of(path)}: {module}"
        for path in FILES
        if path.is_relative_to(ROOT / "shards")
        for module in sorted(imported_by(path))
        if within(module, "dfdet") and not any(within(module, package) for package in allowed)
    ]
    assert found == []


def test_only_the_engine_imports_deepspeed() -> None:
    users = {
        name_of(path) for path in FILES if any(within(module, "deepspeed") for module in imported_by(path))
    }
    assert users == {"dfdet/training/engine.py"}


def test_the_walk_sees_imports_inside_functions_and_relative_ones() -> None:
    tree = ast.parse(
        "def f():\n    import ray.train as t\n    from ..data import plan\n    from dfdet import x\n"
    )
    assert imports(tree, "dfdet.sub") == {"ray.train", "dfdet.data", "dfdet.data.plan", "dfdet", "dfdet.x"}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_loads_code_from_data(path: Path) -> None:
    assert unsafe(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle\npickle.load(f)",
        "import pickle as p\np.loads(b)",
        "from pickle import load\nload(f)",
        "import torch\ntorch.load(f)",
        "import torch\ntorch.load(f, weights_only=False)",
        "from torch import load as read\nread(f)",
        "import yaml\nyaml.load(f, Loader=yaml.Loader)",
        "import numpy as np\nnp.load(f, allow_pickle=True)",
    ],
)
def test_the_check_sees_an_unsafe_load(code: str) -> None:
    assert len(unsafe(ast.parse(code))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch.load(f, weights_only=True)",
        "import yaml\nyaml.safe_load(f)",
        "import json\njson.load(f)",
    ],
)
def test_the_check_passes_a_safe_load(code: str) -> None:
    assert unsafe(ast.parse(code)) == []
