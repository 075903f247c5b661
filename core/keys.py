"""Secret keys of this home: random bytes in a private file, made when they are first needed."""

import logging
import os
import re
import secrets
from pathlib import Path

from core.errors import ConfigurationError

log = logging.getLogger(__name__)

KEY_BYTES = 32
TOKEN_FORM = re.compile(r"[\x21-\x7e]{32,512}")


def read_key(path: Path) -> bytes:
    """Return the key in `path`, made there if it is missing: whole or not at all, mode 0600.

    Several processes may do so at once; all get the same key. Raises ConfigurationError.
    """
    try:
        if not path.exists():
            _create(path)
        key = path.read_bytes()
        if path.stat().st_mode & 0o077:
            log.warning("%s could be read by others; it is private from now on", path)
            path.chmod(0o600)
    except OSError as error:
        text = f"{path} cannot be read or made ({error.strerror}); check the folder's owner"
        raise ConfigurationError(text) from error
    if len(key) != KEY_BYTES:
        raise ConfigurationError(
            f"{path} is not a key of {KEY_BYTES} bytes; delete it to get a new one "
            "(what was signed with the old one is unknown then)"
        )
    return key


def predictor_token(home: Path, given: str = "") -> str:
    """Return what the predictors of a home ask of their callers: `given`, else the home's own.

    Raises ConfigurationError.
    """
    if not given:
        return read_key(home / "control" / "predictor.key").hex()
    if not TOKEN_FORM.fullmatch(given):  # its text must not be told: it would be logged
        raise ConfigurationError(
            "SERIN_PREDICTOR_TOKEN must have 32 to 512 visible ASCII characters; "
            "`openssl rand -hex 32` makes a good one"
        )
    return given


def bearer(token: str) -> str:
    """Return the value of the Authorization header that carries a token."""
    return f"Bearer {token}"


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # unlike a rename it never replaces another process's key
        except FileExistsError:
            return
    finally:
        temporary.unlink()
