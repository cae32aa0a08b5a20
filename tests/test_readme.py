"""The README and docs/: what they tell to type exists, and ``python -m tests.readme`` runs all of it."""

from __future__ import annotations

import ast
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from click import NoSuchOption

from dfdet.errors import ConfigError
from dfdet.recipes import demo
from dfdet.sweep.space.checks import check_space
from dfdet.sweep.space.defaults import default_space
from dfdet.sweep.space.file import read_space
from tests.ray_jobs.jobs import free_ports
from tests.readme import edits
from tests.readme.pages import LANGUAGES, Command, blocks, blocks_of, commands, pages
from tests.readme.parsers import flags, parse, parse_ray, parts, programs, ray_flags
from tests.readme.run import Runner
from tests.readme.shell import Shell, stop
from tests.readme.traces import end_processes
from tests.readme.world import World, borrow

ROOT = Path(__file__).parents[1]
BLOCKS = blocks(ROOT)
PAGES = pages(ROOT)
COMMANDS = [command for block in BLOCKS if block.language == "bash" for command in commands(block)]
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "BENCHMARKS.md", ROOT / "CHANGELOG.md"]
OTHERS_FLAGS = {"logdir", "model-repository", "runtime-env", "working-dir"}
"""Flags in the text that belong to programs of others."""
FOLDERS = ("benchmarks/", "deploy/", "dfdet/", "docs/", "ray_jobs/", "shards/", "tests/")
OURS = ("dfdet", "ray_jobs/", "shards")
"""What programs with a parser begin with."""
WIDEST_CROP = 1.6


def commands_of(path: Path) -> list[Command]:
    return [command for command in COMMANDS if command.block.page == page_id(path)]


def text_of(path: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", path.read_text(encoding="utf-8"), flags=re.S | re.M)


def code_of(path: Path) -> list[str]:
    """What stands in backticks in a page's text."""
    return re.findall(r"`([^`]+)`", text_of(path))


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# What the pages say


def test_there_are_commands_on_every_page():
    assert {command.block.page for command in COMMANDS} == {page_id(path) for path in PAGES}


def test_every_block_says_its_language():
    assert [block.place for block in BLOCKS if block.language not in LANGUAGES] == []


def test_every_block_can_be_read():
    for block in BLOCKS:
        if block.language == "python":
            ast.parse(block.text, block.place)
        elif block.language in ("yaml", "json"):
            assert None not in list(yaml.safe_load_all(block.text)), block.place


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_every_command_is_parsed_by_its_program(path: Path):
    for command in commands_of(path):
        for program, args in programs(command.text):
            if program.startswith(OURS):
                parse(program, args)


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_every_command_of_rays_is_parsed_by_ray(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    for command in commands_of(path):
        for words in map(shlex.split, parts(command.text)):
            if words[0] == "ray":
                parse_ray(words[1:])


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_every_command_is_run_or_says_why_not(path: Path):
    for command in commands_of(path):
        text, reasons = edits.edited(command.text, world="/world", port=1)
        assert all(reasons)
        if edits.skipped(command.text) is None:
            assert not edits.PLACEHOLDER.search(text), text
            assert text.split()[0] in edits.PROGRAMS, text


@pytest.mark.parametrize(
    "line",
    [
        "python ray_jobs/train.py gend --optim.lrr 1",
        "ray job submit -- python ray_jobs/shard.py --dataset ffpp --root A --out B --splitz C",
        "make install && python -m shards verify --all sets/a.json",
        "python ray_jobs/export.py --checkpoint A --out B --tritn",
    ],
)
def test_a_flag_that_does_not_exist_would_be_found(line: str):
    ((program, args),) = programs(line)
    with pytest.raises((ConfigError, AssertionError)):
        parse(program, args)


def test_a_flag_that_ray_does_not_have_would_be_found():
    with pytest.raises(NoSuchOption, match="--working-dirs"):
        parse_ray(["job", "submit", "--working-dirs", ".", "--", "python"])


@pytest.mark.parametrize("rule", [*edits.EDITS, *edits.SKIPS, *edits.SERVERS], ids=lambda rule: rule.pattern)
def test_every_rule_of_the_runner_meets_a_command(rule: edits.Edit | edits.Skip | edits.Server):
    def met(text: str) -> bool:
        for edit in edits.EDITS:
            if edit is rule:
                break
            text = re.sub(edit.pattern, edit.to, text)
        return re.search(rule.pattern, text) is not None

    assert any(met(command.text) for command in COMMANDS)


@pytest.mark.parametrize("path", LINKED, ids=page_id)
def test_links_lead_somewhere(path: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(path)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        page = path.parent / name if name else path
        assert page.exists(), target
        if anchor:
            assert anchor in anchors(page), target


def anchors(path: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", text_of(path), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_flags_in_the_text_exist(path: Path):
    known, rays = flags(), ray_flags()
    for code in code_of(path):
        for flag in re.findall(r"(?<![\w-])--([a-z][\w.-]*)", code):
            others = rays if code.startswith("ray ") else OTHERS_FLAGS
            assert flag in others or flag.replace("-", "_") in known, f"--{flag} in {code}"


@pytest.mark.parametrize("path", LINKED, ids=page_id)
def test_files_of_the_checkout_that_are_named_exist(path: Path):
    said = [*code_of(path), *(command.text for command in commands_of(path))]
    for word in (word for text in said for word in text.split()):
        if word.startswith(FOLDERS):
            assert list(ROOT.glob(word.rstrip("/,;:."))), word


def test_what_the_layout_names_exists():
    layout = (
        (ROOT / "README.md").read_text(encoding="utf-8").partition("\n## Layout\n")[2].partition("\n## ")[0]
    )
    names = re.findall(r"`([\w./]+)`", layout)
    assert {"ray_jobs", "dfdet", "shards"} <= set(names)
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_the_search_space_is_one(tmp_path: Path):
    spaces = [block for block in BLOCKS if block.language == "yaml" and "dimensions:" in block.text]
    assert spaces
    for block in spaces:
        (tmp_path / "space.yaml").write_text(block.text)
        space = read_space(tmp_path / "space.yaml", default_space(demo(), WIDEST_CROP), demo())
        check_space(space, demo(), WIDEST_CROP)


# How they are read

PAGE = """Say it.

```bash
one --a 'x # y' \\
    --b  # why
# only a comment
two && three   # more
```

This `space.yaml`:

```yaml
a: 1
```
"""


def test_blocks_have_place_language_and_the_file_named_before():
    first, second = blocks_of("P.md", PAGE)
    assert (first.place, first.language, first.file) == ("P.md:4", "bash", None)
    assert (second.place, second.text, second.file) == ("P.md:13", "a: 1\n", "space.yaml")


def test_commands_have_their_lines_joined_and_no_comments():
    found = commands(next(blocks_of("P.md", PAGE)))
    assert [(each.line, each.text) for each in found] == [(4, "one --a 'x # y' --b"), (7, "two && three")]


def test_a_fence_that_is_not_closed_is_an_error():
    with pytest.raises(ValueError, match=r"P\.md:1: the fence is not closed"):
        list(blocks_of("P.md", "```bash\none\n"))


# How they are run


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    (made.clone / ".venv" / "bin").mkdir(parents=True)
    (made.clone / ".venv" / "bin" / "python").symlink_to(sys.executable)
    for name in ("home", "tmp", "ray"):
        (tmp_path / name).mkdir()
    yield made
    end_processes(tmp_path, 0)


def run(world: World, page: str) -> list[tuple[str, str]]:
    """State and reason of each command."""
    runner = Runner(world, Shell(world, {}, 60), {"world": world.folder, "port": 1})
    return [(each.state, each.why) for each in runner.run(blocks_of("P.md", page))]


def bash(*lines: str) -> str:
    return "\n".join(["```bash", *lines, "```\n"])


def test_a_command_that_fails_is_told_and_the_next_ones_run(world):
    assert run(world, bash("false | cat", "true", "test -e nothing")) == [
        ("FAILED", "exit code 1"),
        ("ran", ""),
        ("FAILED", "exit code 1"),
    ]


def test_variables_and_folder_go_from_command_to_command(world):
    page = bash("mkdir sub && cd sub && export A='b  c'") + bash('printf "$A" > it')
    assert run(world, page) == [("ran", ""), ("ran", "")]
    assert (world.clone / "sub" / "it").read_text() == "b  c"


def test_python_runs_and_files_are_written(world):
    page = '`a.json`:\n\n```json\n{"x": 3}\n```\n\n```python\nassert "3" in open("a.json").read()\n```\n'
    assert run(world, page) == [("ran", ""), ("ran", "")]
    assert run(world, page.replace("assert", "assert not"))[1] == ("FAILED", "exit code 1")


def test_what_is_skipped_and_what_needs_a_cluster_does_not_run(world):
    assert run(world, bash("make test", "ray job submit -- touch it")) == [
        ("skipped", "runs the tests, which CI does by itself"),
        ("skipped", "needs a cluster: --cluster"),
    ]
    assert list(world.clone.iterdir()) == [world.clone / ".venv"]


def test_an_edit_changes_the_command_and_is_told():
    text, why = edits.edited("python ray_jobs/predict.py --checkpoint C clip.mp4", world="/w", port=1)
    assert text == "python ray_jobs/predict.py --checkpoint C clip.mp4 --weights /w/clone/detector.onnx"
    assert why == ("the detector that the sets were cut with is no download",)
    assert edits.edited("ls shared/x", world="/w", port=1) == ("ls shared/x", ())


def test_homes_and_temporary_files_lie_in_the_world(world):
    asked = "import pathlib, tempfile; print(pathlib.Path.home(), tempfile.gettempdir())"
    assert run(world, bash(f'python -c "{asked}" > it')) == [("ran", "")]
    assert (world.clone / "it").read_text().split() == [f"{world.folder}/home", f"{world.folder}/tmp"]


def test_a_process_that_is_left_is_found_with_the_place_of_its_command(world):
    script = "import subprocess as s; s.Popen(['sleep', '1000'], start_new_session=True)"
    assert run(world, bash(f'python -c "{script}"')) == [("ran", "")]
    (left,) = end_processes(world.folder, 0)
    assert re.fullmatch(r"P\.md:2: process \d+: sleep 1000", left)
    assert end_processes(world.folder, 60) == []


def test_a_server_is_ready_when_it_answers_and_ends_by_a_signal(world):
    (port,) = free_ports(1)
    command, url = f"python -m http.server --bind 127.0.0.1 {port}", f"http://127.0.0.1:{port}/"
    process, ready = Shell(world, {}, 60).serve(command, "s", url)
    assert ready
    assert stop(process) == -signal.SIGTERM


def test_a_server_that_ends_is_not_ready(world):
    _, ready = Shell(world, {}, 60).serve("python -c 1", "s", "http://127.0.0.1:9/")
    assert not ready


def test_a_borrowed_environment_has_the_clones_code_and_the_others_packages(tmp_path):
    (tmp_path / "dfdet").mkdir()
    (tmp_path / "dfdet" / "__init__.py").write_text("")
    borrow(Path(sys.executable), tmp_path)
    binaries = tmp_path / ".venv" / "bin"
    asked = "import dfdet, sys, yaml; print(dfdet.__file__, sys.prefix)"
    told = subprocess.run(
        [binaries / "python", "-c", asked], capture_output=True, text=True, check=True, cwd="/"
    )
    assert told.stdout.split() == [str(tmp_path / "dfdet" / "__init__.py"), str(tmp_path / ".venv")]
    assert (binaries / "ray").read_text().startswith(f"#!{binaries}/python")
