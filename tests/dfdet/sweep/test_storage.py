import importlib.util
import json
import multiprocessing
from collections import Counter

import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from dfdet.errors import ConfigError, RunFolderError
from dfdet.sweep.storage import Journal, open_storage, with_absolute_path
from tests.dfdet.sweep.studies import finish


@pytest.fixture
def journal(open_study, tmp_path):
    """The journal of a study with three settings."""
    study = open_study()
    finish(study, 3)
    study.close()
    return tmp_path / "sweep" / "study.journal"


# ---- the journal


def test_optunas_own_backend_reads_the_journal(journal):
    study = JournalStorage(JournalFileBackend(str(journal)))
    assert [trial.values for trial in study.get_all_trials(0)] == [[0.5]] * 3


def test_reading_goes_on_where_it_ended(tmp_path):
    ours, other = Journal(tmp_path / "journal", 0.0), Journal(tmp_path / "journal", 0.0)
    logs = [{"op_code": number} for number in range(5)]
    other.append_logs(logs[:2])
    assert list(ours.read_logs(0)) == logs[:2]
    other.append_logs(logs[2:])
    assert list(ours.read_logs(2)) == logs[2:]
    assert list(ours.read_logs(5)) == []
    assert list(ours.read_logs(1)) == logs[1:]


def test_writers_of_several_processes_do_not_mix_their_lines(tmp_path):
    path, fork = tmp_path / "journal", multiprocessing.get_context("fork")

    def write(writer):
        for number in range(50):
            Journal(path, 0.0).append_logs([{"op_code": 0, "writer": writer, "number": number}])

    processes = [fork.Process(target=write, args=(writer,)) for writer in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    logs = list(Journal(path, 0.0).read_logs(0))
    assert Counter(log["writer"] for log in logs) == dict.fromkeys(range(4), 50)
    assert all(
        [log["number"] for log in logs if log["writer"] == writer] == [*range(50)] for writer in range(4)
    )


def test_line_longer_than_a_block_is_cut_off_whole(tmp_path):
    path = tmp_path / "journal"
    journal = Journal(path, 0.0)
    journal.append_logs([{"op_code": 0}])
    with path.open("a") as file:
        file.write('{"op_code": 1, "text": "' + "x" * 10_000)
    journal.append_logs([{"op_code": 2}])
    assert [log["op_code"] for log in journal.read_logs(0)] == [0, 2]


@pytest.mark.parametrize("damage", [b"\0\0\0\0", b"}", b"[1]\n", b"7\n{"])
def test_damaged_line_is_named_with_the_file(journal, open_study, damage):
    lines = journal.read_bytes().split(b"\n")
    lines[4] = damage + lines[4][len(damage) :]
    journal.write_bytes(b"\n".join(lines))
    with pytest.raises(RunFolderError) as error:
        open_study()
    assert str(error.value).startswith(f"study {journal}: line 5 is damaged")


@pytest.mark.parametrize("record", [{"op_code": 99}, {"op_code": 4}, {"op_code": 0, "study_name": 7}])
def test_record_that_makes_no_sense_is_one_line_with_the_file(journal, open_study, record):
    with journal.open("a") as file:
        file.write(json.dumps(record | {"worker_id": "w"}) + "\n")
    with pytest.raises(RunFolderError) as error:
        open_study()
    assert str(error.value).startswith(f"study {journal}: its records make no sense")


def test_journal_that_is_gone_is_not_begun_anew(journal, open_study):
    journal.unlink()
    with pytest.raises(RunFolderError, match=r"study\.journal: is gone; restore it from a copy"):
        open_study()
    assert not journal.exists()


# ---- databases


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("study.db", "no URL of a database; give sqlite:///FILE or postgresql://USER@HOST/DATABASE"),
        ("mysql://host/db", "mysql is not supported; give one of sqlite, postgresql"),
        ("sqlite://", "a study in memory dies with its process"),
        ("sqlite:///:memory:", "a study in memory dies with its process"),
        ("sqlite:////no/such/folder/study.db", "cannot be opened (unable to open database file)"),
    ],
)
def test_database_that_cannot_be_used_is_refused(tmp_path, url, said):
    with pytest.raises(ConfigError) as error:
        open_storage(tmp_path, url, 0.0)
    assert said in str(error.value)


@pytest.mark.parametrize("url", ["postgresql://me:secret@host/db", "postgresql://host/db?password=secret"])
def test_password_in_a_url_is_refused_and_not_shown(tmp_path, url):
    with pytest.raises(ConfigError, match=r"put it into ~/\.pgpass") as error:
        open_storage(tmp_path, url, 0.0)
    assert "secret" not in str(error.value)


@pytest.mark.skipif(importlib.util.find_spec("psycopg2") is not None, reason="there is a driver")
def test_missing_driver_of_a_database_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no driver for it; pip install 'psycopg\[binary\]'"):
        open_storage(tmp_path, "postgresql://me@host/db", 0.0)


def test_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "study.db").write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match=r"cannot be opened \(file is not a database\)"):
        open_storage(tmp_path, f"sqlite:///{tmp_path}/study.db", 0.0)


def test_a_file_of_a_database_is_where_relative_paths_lie():
    def absolute(path):
        return f"/home/of/jobs/{path}"

    assert with_absolute_path("sqlite:///study.db", absolute) == "sqlite:////home/of/jobs/study.db"
    url = "postgresql+psycopg://me@host/sweeps"
    assert with_absolute_path(url, absolute) == url
