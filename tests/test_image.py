"""The image of the Kubernetes manifests, as far as its recipe tells without building it."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


@pytest.fixture(scope="module")
def recipe():
    """Instructions of the Dockerfile: word and arguments, in order."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def arguments(recipe, instruction):
    return [rest for word, rest in recipe if word == instruction]


@pytest.fixture(scope="module")
def node():
    cluster = yaml.safe_load((DEPLOY / "raycluster.yaml").read_text())
    return cluster["spec"]["headGroupSpec"]["template"]["spec"]


def test_it_installs_exactly_the_constraints(recipe):
    (install,) = [each for each in arguments(recipe, "RUN") if "uv pip install" in each]
    assert "--requirements pyproject.toml" in install
    assert "--constraint constraints.txt" in install
    extras = re.findall(r"--extra (\w+)", install)
    declared = (ROOT / "pyproject.toml").read_text()
    assert extras
    assert all(re.search(rf"^{extra} = ", declared, re.MULTILINE) for extra in extras)


def test_its_python_is_that_of_the_other_clusters(recipe):
    (base,) = arguments(recipe, "FROM")
    (install,) = re.findall(r"uv venv .*--python (\S+)", (ROOT / "cluster.yaml").read_text())
    assert base.startswith(f"python:{install}-")


def test_it_has_all_of_the_code_and_nothing_else(recipe):
    sources = [word for line in arguments(recipe, "COPY") for word in line.split()[:-1]]
    assert {"dfdet", "shards", "ray_jobs", "pyproject.toml", "constraints.txt"} == set(sources)
    assert all((ROOT / source).exists() for source in sources)
    ignored, *kept = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    assert ignored == "*"
    assert {rule[1:] for rule in kept if rule.startswith("!")} == set(sources)
    assert any(fnmatch.fnmatch("**/__pycache__", rule) for rule in kept)


def test_commands_find_the_code_from_where_they_start(recipe, node):
    (folder,) = arguments(recipe, "WORKDIR")
    assert f"PYTHONPATH={folder}" in arguments(recipe, "ENV")
    assert node["containers"][0]["workingDir"] == folder


def test_it_runs_as_the_user_of_the_pods(recipe, node):
    user = str(node["securityContext"]["runAsUser"])
    assert recipe[-1] == ("USER", user)
    (made,) = [each for each in arguments(recipe, "RUN") if "useradd" in each]
    name = made.split()[-1]
    assert f"--uid {user} --create-home" in made
    mounts = {mount["mountPath"] for mount in node["containers"][0]["volumeMounts"]}
    assert f"/home/{name}/.cache" in mounts
