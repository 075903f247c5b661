"""What serves now, as the next training needs it: the ledger says which, the registry says what."""

from pathlib import Path

from core.errors import IntegrityError
from core.manifests import read_manifest
from core.settings import Settings
from registry.connection import Connection
from registry.versions import ModelVersion, Registry
from rollout.ledger import Ledger

FILE_SCHEME = "file://"


def open_registry() -> Registry:
    """Connect to MLflow: the server that the settings name, else a local database."""
    settings = Settings.read()
    if settings.mlflow_url:
        return Registry(Connection(settings.mlflow_url), settings.service)
    return Registry(Connection.local(settings.folder("mlflow")), settings.service)


def stable_version() -> ModelVersion | None:
    """Return the registered version that serves as stable; None before the first release."""
    settings = Settings.read()
    release = Ledger(settings.ledger_url).stable(settings.service, settings.namespace)
    return None if release is None else open_registry().get(release.candidate.model_version)


def parent_adapter() -> Path | None:
    """Return stable's adapter, fetched and checked against its recorded digest."""
    stable = stable_version()
    if stable is None:
        return None
    folder = Settings.read().folder("adapters") / f"fetched-{stable.adapter_digest[:12]}"
    return open_registry().fetch_adapter(stable.version, folder)


def stable_bundle() -> tuple[Path, str] | None:
    """Return the folder and digest of stable's bundle; None before the first release.

    Raises IntegrityError when the folder is gone or is another bundle.
    """
    stable = stable_version()
    if stable is None:
        return None
    folder = bundle_path(stable.bundle_uri)
    if read_manifest(folder).digest != stable.bundle_digest:
        raise IntegrityError(f"{folder} is not the bundle of version {stable.version}")
    return folder, stable.bundle_digest


def bundle_path(uri: str) -> Path:
    """Return the local folder of a file:// URI; in a restored home, that of the same digest."""
    path = Path(uri.removeprefix(FILE_SCHEME))
    here = Settings.read().home / "bundles" / path.name
    return here if here.is_dir() and not path.is_dir() else path


def bundle_uri(path: Path) -> str:
    """Return the file:// URI of a local folder."""
    return f"{FILE_SCHEME}{path.absolute()}"
