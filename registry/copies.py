"""MLflow's database and files as a backup takes them: a consistent copy, what its aliases need.

Reads the tables of a copied database itself, so that neither a server nor MLflow must run.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.errors import IntegrityError, UnavailableError

DATABASE = "mlflow.db"
ARTIFACTS = ("artifacts", "mlflow-artifacts")
"""Folders of files below <home>/mlflow: the server's, and the one used without a server."""
MODEL_SCHEME = "models:/"
PLACES = (
    ("experiments", "artifact_location"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("runs", "artifact_uri"),
)
"""Columns that may hold the home's path, where MLflow was used without its server."""


@dataclass(frozen=True, slots=True)
class AliasedVersion:
    """A version that has an alias: what its role is and which files it needs."""

    alias: str
    version: str
    model_id: str
    bundle_digest: str
    base_digest: str


def copy_database(source: Path, target: Path) -> None:
    """Copy a SQLite database consistently while others write (SQLite's online backup).

    Raises UnavailableError when it is not readable, IntegrityError when the copy is not sound.
    """
    try:
        with closing(sqlite3.connect(source)) as found, closing(sqlite3.connect(target)) as copy:
            found.backup(copy)
            if copy.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise IntegrityError(f"{source} is damaged; it cannot be backed up")
    except sqlite3.Error as error:
        raise UnavailableError(f"{source} cannot be copied: {error}") from error


def aliased_versions(database: Path, name: str) -> list[AliasedVersion]:
    """Return the versions of a registered model that have an alias, from a copied database.

    Raises UnavailableError for one that MLflow is still making or bringing forward.
    """
    query = (
        "SELECT a.alias, v.version, v.source FROM registered_model_aliases a "
        "JOIN model_versions v ON v.name = a.name AND v.version = a.version "
        "AND v.workspace = a.workspace WHERE a.name = ? ORDER BY a.alias"
    )
    tagged = "SELECT key, value FROM model_version_tags WHERE name = ? AND version = ?"
    with _opened(database) as connection:
        columns = {row[1] for row in connection.execute("PRAGMA table_info(model_versions)")}
        if "workspace" not in columns:
            raise UnavailableError(
                "MLflow's database is not yet in its present form: its server brings it there "
                "when it starts; try again in a minute"
            )
        return [
            AliasedVersion(
                alias=alias,
                version=str(version),
                model_id=str(source).removeprefix(MODEL_SCHEME),
                bundle_digest=tags.get("bundle_digest", ""),
                base_digest=tags.get("base_digest", ""),
            )
            for alias, version, source in connection.execute(query, (name,)).fetchall()
            for tags in [dict(connection.execute(tagged, (name, version)).fetchall())]
        ]


def model_files(folder: Path, model_id: str) -> list[Path]:
    """Return the files of a logged model below <home>/mlflow: its adapter, lineage and verdict."""
    forms = (f"models/{model_id}", f"*/models/{model_id}")
    roots = [path for name in ARTIFACTS for form in forms for path in (folder / name).glob(form)]
    return sorted(path for root in roots for path in root.rglob("*") if path.is_file())


def move_places(database: Path, before: Path, after: Path) -> None:
    """Let a restored database name the files where the home is now."""
    with _opened(database) as connection:
        for table, column in PLACES:
            connection.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?) WHERE {column} LIKE ?",
                (f"{before}/", f"{after}/", f"%{before}/%"),
            )
        connection.commit()


@contextmanager
def _opened(database: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(database)) as connection:
            yield connection
    except sqlite3.Error as error:
        raise IntegrityError(f"{database} is not a database of MLflow's: {error}") from error
