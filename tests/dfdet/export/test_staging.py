"""A folder is whole or absent, and its checksums are those that sha256sum reads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dfdet.errors import RunFolderError
from dfdet.export.staging import check_out, files_of, new_folder, read_sums, write_sums

WRITER = """
import sys
from pathlib import Path
from dfdet.export.staging import new_folder
with new_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("written")
    print("within", flush=True)
    sys.stdin.read()
"""


def begun(out: Path) -> subprocess.Popen[bytes]:
    """A process that has begun to write a folder, and waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout and process.stdout.readline() == b"within\n"
    return process


@pytest.mark.parametrize("empty_there", [False, True])
def test_a_folder_appears_whole(empty_there: bool, tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "out"
    if empty_there:
        out.mkdir(parents=True)
    with new_folder(out) as folder:
        (folder / "file").write_text("x")
        assert not (out / "file").exists()
    assert (out / "file").read_text() == "x"
    assert list(out.parent.iterdir()) == [out]


def test_an_error_leaves_nothing_not_even_folders_above(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), new_folder(tmp_path / "a" / "b" / "out") as folder:
        (folder / "file").write_text("x")
        raise ValueError("broken")
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_is_removed_by_the_next(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = begun(out)
    process.kill()
    process.wait()
    assert not out.exists()
    assert len(list(tmp_path.iterdir())) == 1
    with new_folder(out) as folder:
        (folder / "whole").write_text("x")
    assert list(tmp_path.iterdir()) == [out]
    assert [path.name for path in out.iterdir()] == ["whole"]


def test_one_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = begun(out)
    with pytest.raises(RunFolderError, match="another export is writing to it"), new_folder(out):
        pass
    process.communicate(b"")
    assert process.returncode == 0
    assert (out / "half").read_text() == "written"


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").write_text("x")
    with pytest.raises(RunFolderError, match="exists and is not empty; give another --out, or remove it"):
        check_out(tmp_path / "out")


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(RunFolderError, match=r"cannot be written \(Not a directory\); give a writable"):
            check_out(out)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_is_refused(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(RunFolderError, match=r"cannot be written \(Permission denied\)"):
        check_out(tmp_path / "closed" / "out")


def test_checksums_are_those_that_sha256sum_reads(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b").write_text("b")
    (tmp_path / "a c").write_text("a")
    write_sums(tmp_path, {})
    assert files_of(tmp_path) == ["a c", "sub/b"]
    assert list(read_sums(tmp_path)) == ["a c", "sub/b"]
    assert read_sums(tmp_path)["sub/b"] == "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d"
    tool = shutil.which("sha256sum")
    if tool is not None:
        subprocess.run([tool, "--check", "--strict", "SHA256SUMS"], cwd=tmp_path, check=True)
