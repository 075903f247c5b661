"""MLflow's database as a backup takes it."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from core.errors import UnavailableError
from registry.copies import aliased_versions


def test_a_database_that_mlflow_is_still_making_is_to_be_asked_again_later(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE model_versions (name, version, source)")
        database.commit()
    with pytest.raises(UnavailableError, match="try again in a minute"):
        aliased_versions(path, "assistant")
