"""Adapter files of a registered version: kept with it, fetched back, checked before anyone loads.

A digest recorded in the registry's database is compared with the files' own.
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from core.digests import digest_folder
from core.errors import IntegrityError, NotFoundError
from registry.connection import Connection

ADAPTER_FOLDER = "adapter"
UNSAFE_ENDINGS = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".joblib", ".npy"}


def check_adapter(folder: Path, expected_digest: str) -> None:
    """Check an adapter folder's digest, and that nothing in it would be unpickled.

    Raises NotFoundError without the folder, IntegrityError when it is not what was recorded.
    """
    if not folder.is_dir():
        raise NotFoundError(f"no adapter folder {folder}; train again")
    for path in folder.rglob("*"):
        if path.is_symlink() or path.suffix.lower() in UNSAFE_ENDINGS:
            raise IntegrityError(f"{path} is not allowed in an adapter; keep safetensors only")
    actual = digest_folder(folder)
    if actual != expected_digest:
        raise IntegrityError(
            f"adapter {folder} has digest {actual[:12]}, recorded is {expected_digest[:12]}: "
            "do not load it; fetch it again or roll back to another version"
        )


def store_adapter(connection: Connection, client: Any, model_id: str, adapter: Path) -> None:
    """Copy an adapter's files to the registry."""
    with connection.errors():
        client.log_model_artifacts(model_id, str(adapter), artifact_path=ADAPTER_FOLDER)


def fetch(connection: Connection, model_id: str, part: str, folder: Path) -> Path:
    """Download one folder of a logged model into `folder`; the same for files and servers.

    Raises NotFoundError when the registry does not have it.
    """
    from mlflow.artifacts import download_artifacts

    client = connection.client()
    with connection.errors():
        location = str(client.get_logged_model(model_id).artifact_location)
        try:
            found = download_artifacts(
                artifact_uri=f"{location.rstrip('/')}/{part}",
                dst_path=str(folder),
                tracking_uri=connection.uri,
            )
        except OSError as error:
            raise NotFoundError(f"{location}/{part} cannot be read: {error}") from error
    return Path(found)


def fetch_adapter(
    connection: Connection, model_id: str, expected_digest: str, folder: Path
) -> Path:
    """Return `folder` holding the adapter with the recorded digest; it appears whole or not at all.

    A folder that is there already is checked and used; a damaged one is replaced. Raises
    IntegrityError when the registry's own copy differs from the recorded digest.
    """
    if folder.is_dir():
        if digest_folder(folder) == expected_digest:
            check_adapter(folder, expected_digest)
            return folder
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as scratch:
        fetched = fetch(connection, model_id, ADAPTER_FOLDER, Path(scratch))
        check_adapter(fetched, expected_digest)
        try:
            os.replace(fetched, folder)
        except OSError:
            # somebody else fetched the same adapter meanwhile: theirs must be as good
            check_adapter(folder, expected_digest)
    return folder
