"""Drivers in processes of their own, killed where it hurts."""

import json
import multiprocessing
import os
import resource
import signal
import time
from collections import Counter

import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from dfdet.errors import TrainingError
from dfdet.sweep import storage
from dfdet.sweep.study import Ask, Done
from tests.dfdet.sweep.studies import finish, open_sweep

FORK = multiprocessing.get_context("fork")


def run(function, *args):
    """Runs a function in a process; gives its exit code, negative for a signal."""
    process = FORK.Process(target=function, args=args)
    process.start()
    process.join()
    return process.exitcode


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def whole_lines(journal):
    return journal.read_bytes().count(b"\n")


# ---- sharing


def drive(folder, url, limit, log):
    """A driver that trains settings in no time; one JSON line a setting."""
    study = open_sweep(folder, url)
    with log.open("w") as file:
        while (ask := study.next(limit)) != Done():
            if ask is None:
                time.sleep(0.01)
                continue
            file.write(json.dumps([ask.number, ask.values]) + "\n")
            study.report(ask.number, 1, ask.values["loss.uniformity"])
            study.complete(ask.number, [ask.values["loss.uniformity"]])
    study.close()


def shared(folder, url, drivers, limit):
    """What several drivers at the same time were given."""
    logs = [folder.parent / f"driver-{number}.jsonl" for number in range(drivers)]
    processes = [FORK.Process(target=drive, args=(folder, url, limit, log)) for log in logs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * drivers
    return [json.loads(line) for log in logs for line in log.read_text().splitlines()]


def test_drivers_share_a_study_without_going_past_the_limit(tmp_path, url):
    limit = 20 if url is None else 8
    given = shared(tmp_path / "sweep", url, 4 if url is None else 3, limit)
    assert Counter(number for number, _ in given) == dict.fromkeys(range(limit), 1)
    study = open_sweep(tmp_path / "sweep", url)
    assert [trial.user_attrs["values"] for trial in study.trials()] == [
        values for _, values in sorted(given, key=lambda pair: pair[0])
    ]
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials())
    study.close()


# ---- kills


def killed_driver(folder, append, moment, log):
    """Trains until the given append to the journal, then is killed: before, within or after it."""
    study = open_sweep(folder)
    study.publish({"paper": {"loss.uniformity": 0.5, "model.head": "cosine", "model.margin": 0.25}})
    begin = whole_lines(folder / storage.JOURNAL)
    write = storage.write_at

    def write_or_die(descriptor, data, place):
        if whole_lines(folder / storage.JOURNAL) - begin == append:
            if moment != "before":
                write(descriptor, data if moment == "after" else data[: len(data) // 2], place)
            die()
        write(descriptor, data, place)

    storage.write_at = write_or_die
    with log.open("w") as file:
        while isinstance(ask := study.next(4), Ask):
            print(json.dumps([ask.number, ask.values]), file=file, flush=True)
            study.report(ask.number, 1, ask.values["loss.uniformity"])
            study.complete(ask.number, [ask.values["loss.uniformity"]])
            print(json.dumps([ask.number, "ended"]), file=file, flush=True)


@pytest.mark.parametrize("moment", ["before", "within", "after"])
def test_driver_killed_at_any_write_loses_and_repeats_nothing(tmp_path, moment):
    append = 0
    while True:
        folder, log = tmp_path / f"sweep-{append}", tmp_path / "log"
        code = run(killed_driver, folder, append, moment, log)
        told = [json.loads(line) for line in log.read_text().splitlines()]
        given = {number: values for number, values in told if values != "ended"}
        ended = {number for number, values in told if values == "ended"}
        study = open_sweep(folder)
        assert study.publish({"paper": {"loss.uniformity": 0.5}}) == {}
        after = {ask.number: ask.values for ask in finish(study, 4)}
        recorded = [trial.user_attrs["values"] for trial in study.trials()]
        study.close()
        assert len(recorded) == 4
        assert recorded[0] == {"loss.uniformity": 0.5, "model.head": "cosine", "model.margin": 0.25}
        assert not ended & after.keys()
        assert len(ended | after.keys()) >= 3  # one may have ended without its driver living to say so
        for number, values in [*given.items(), *after.items()]:
            assert recorded[number] == values
        if code == 0:  # it outlived its last write
            break
        assert code == -signal.SIGKILL
        append += 1
    assert append > 25


def torn(folder):
    study = open_sweep(folder)

    def half(descriptor, data, place):
        os.pwrite(descriptor, data[: len(data) // 2], place)
        die()

    storage.write_at = half
    study.next(1)


def test_line_that_a_kill_cut_short_is_removed_by_the_next_write(tmp_path):
    assert run(torn, tmp_path) == -signal.SIGKILL
    journal = tmp_path / storage.JOURNAL
    assert not journal.read_bytes().endswith(b"\n")
    study = open_sweep(tmp_path)
    assert study.trials() == []
    assert study.next(1).number == 0
    study.close()
    assert journal.read_bytes().endswith(b"\n")
    logs = list(JournalFileBackend(str(journal)).read_logs(0))  # as the dashboard reads it
    assert len(logs) == whole_lines(journal)


def killed_with_all_locks(folder):
    study = open_sweep(folder)
    storage.write_at = lambda *_: die()  # holds the sweep's lock and the journal's
    study.next(1)


def test_locks_of_a_killed_driver_hold_nobody_up(tmp_path):
    assert run(killed_with_all_locks, tmp_path) == -signal.SIGKILL
    study = open_sweep(tmp_path)
    assert len(finish(study, 1)) == 1
    study.close()


def killed_while_training(folder, url, log):
    study = open_sweep(folder, url)
    ask = study.next(3)
    study.report(ask.number, 1, 0.5)
    log.write_text(json.dumps([ask.number, ask.values]))
    die()


def test_next_driver_takes_up_what_a_killed_one_trained(tmp_path, url):
    assert run(killed_while_training, tmp_path / "sweep", url, tmp_path / "log") == -signal.SIGKILL
    study = open_sweep(tmp_path / "sweep", url)
    ask = study.next(3)
    assert [ask.number, ask.values] == json.loads((tmp_path / "log").read_text())
    assert ask.resumed
    assert study.trials()[0].intermediate_values == {1: 0.5}
    study.close()


def test_setting_of_a_driver_that_lives_is_left_to_it(tmp_path):
    begun, release = FORK.Event(), FORK.Event()

    def live():
        study = open_sweep(tmp_path)
        study.next(2)
        begun.set()
        release.wait()
        os._exit(0)

    process = FORK.Process(target=live)
    process.start()
    begun.wait()
    study = open_sweep(tmp_path)
    assert study.next(2).number == 1
    assert study.next(2) is None
    release.set()
    process.join()
    assert study.next(2).number == 0
    study.close()


# ---- a disk that fills up


def write_to_a_full_disk(folder):
    """Exits with 0 if the write that does not fit fails, and one that does succeeds after it."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    study = open_sweep(folder)
    number = study.next(1).number
    before = (folder / storage.JOURNAL).read_bytes()
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 300, resource.RLIM_INFINITY))
    with pytest.raises(TrainingError, match=r"study .*study\.journal: cannot be written"):
        study.set_attrs(number, {"runs": ["x" * 1000]})
    assert (folder / storage.JOURNAL).read_bytes() == before
    study.set_attrs(number, {"runs": ["x"]})
    os._exit(0)


def test_write_that_does_not_fit_leaves_the_journal_whole(tmp_path):
    assert run(write_to_a_full_disk, tmp_path) == 0
    study = open_sweep(tmp_path)
    assert study.trials()[0].user_attrs["runs"] == ["x"]
    study.close()
