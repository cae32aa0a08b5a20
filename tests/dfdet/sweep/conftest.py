import shutil

import pytest
from optuna.storages import RDBStorage

from tests.dfdet.sweep.studies import open_sweep


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """A SQLite file with Optuna's tables, which take a second to make."""
    path = tmp_path_factory.mktemp("database") / "empty.db"
    RDBStorage(f"sqlite:///{path}").engine.dispose()
    return path


@pytest.fixture
def sqlite_url(tmp_path, empty_database):
    shutil.copy(empty_database, tmp_path / "study.db")
    return f"sqlite:///{tmp_path}/study.db"


@pytest.fixture(params=["journal", "sqlite"])
def url(request):
    return None if request.param == "journal" else request.getfixturevalue("sqlite_url")


@pytest.fixture
def open_study(tmp_path):
    """Opens the study of one sweep as one more driver; all are closed in the end."""
    opened = []

    def open_study(url=None, folder="sweep", **changes):
        opened.append(open_sweep(tmp_path / folder, url, **changes))
        return opened[-1]

    yield open_study
    for study in opened:
        study.close()
