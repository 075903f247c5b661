"""Who may answer for a release: names with personal codes, kept as salted scrypt hashes in a file.

Knows no release: what an approver's answer does is decided in answers.py.
"""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.errors import ConfigurationError, ConflictError, InputError, NotFoundError

FILE_NAME = "approvers.yaml"
NAME_PATTERN = r"[\w.@-][\w.@ -]{0,62}[\w.@-]|[\w.@-]"
CODE_LENGTH_MIN = 6
CODE_LENGTH_MAX = 200
SALT_BYTES = 16
SCRYPT_N, SCRYPT_R, SCRYPT_P = 2**14, 8, 1
"""16 MiB and about 50 ms for each try."""


class Entry(BaseModel):
    """One approver: hexadecimal salt and scrypt hash of the code."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    salt: str = Field(pattern=r"^[0-9a-f]{32}$", description="16 random bytes, hexadecimal")
    scrypt: str = Field(
        pattern=r"^[0-9a-f]{64}$",
        description=f"scrypt(code, salt, n={SCRYPT_N}, r={SCRYPT_R}, p={SCRYPT_P}), 32 bytes",
    )


class File(BaseModel):
    """The whole file: `approvers` by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    approvers: Mapping[str, Entry] = Field(
        default_factory=dict, description="who may approve and reject, by name"
    )


class Approvers:
    """The approvers of one home, read anew at each call: whoever is removed counts no more."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> tuple[str, ...]:
        """The configured approvers; empty means that names are self-declared.

        Raises ConfigurationError when the file is malformed.
        """
        return tuple(sorted(self._read()))

    def proven(self, name: str, code: str) -> str | None:
        """Return the approver's name as configured when the code is theirs, else None.

        Takes as long for a name that is not configured.
        """
        found = {known.casefold(): known for known in self._read()}.get(name.strip().casefold())
        entry = self._read()[found] if found is not None else _nobody()
        right = hmac.compare_digest(_hash(code, bytes.fromhex(entry.salt)), entry.scrypt)
        return found if right else None

    def add(self, name: str, code: str) -> None:
        """Add an approver. Raises InputError for a bad name or code, ConflictError if known."""
        if re.fullmatch(NAME_PATTERN, name) is None:
            raise InputError(f"{name!r} is no approver's name: use letters, digits, . @ - and _")
        if not CODE_LENGTH_MIN <= len(code) <= CODE_LENGTH_MAX:
            raise InputError(
                f"a code has {CODE_LENGTH_MIN} to {CODE_LENGTH_MAX} characters; choose another"
            )
        if code.casefold() == name.casefold():
            raise InputError("a code that is the name proves nothing; choose another")
        entries = self._read()
        if name.casefold() in {known.casefold() for known in entries}:
            raise ConflictError(f"{name} is an approver already; remove it first for a new code")
        salt = secrets.token_bytes(SALT_BYTES)
        self._write({**entries, name: Entry(salt=salt.hex(), scrypt=_hash(code, salt))})

    def remove(self, name: str) -> None:
        """Remove an approver. Raises NotFoundError."""
        entries = self._read()
        if name not in entries:
            raise NotFoundError(f"{name} is no approver; `serin approver list` shows them")
        self._write({known: entry for known, entry in entries.items() if known != name})

    def _read(self) -> dict[str, Entry]:
        try:
            content = yaml.safe_load(self.path.read_text())
            return dict(File.model_validate(content or {}).approvers)
        except FileNotFoundError:
            return {}
        except (yaml.YAMLError, ValidationError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"{self.path} is malformed; repair it, or remove it and add the approvers anew"
            ) from error

    def _write(self, entries: Mapping[str, Entry]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(File(approvers=dict(sorted(entries.items()))).model_dump())
        fresh = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path)


def _hash(code: str, salt: bytes) -> str:
    return hashlib.scrypt(
        code.encode(), salt=salt, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P, dklen=32
    ).hex()


def _nobody() -> Entry:
    return Entry(salt="00" * SALT_BYTES, scrypt="00" * 32)
