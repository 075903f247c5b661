"""Which addresses may be given for bundles and data: listed schemes, and nothing that leads away.

An address is given in forms and specs; a server that fetches whatever it is told to could be
used to ask others in its place.
"""

from collections.abc import Collection
from urllib.parse import unquote, urlsplit

from core.errors import InputError

BUNDLE_SCHEMES = frozenset(("file", "pvc", "s3", "gs"))
DATA_SCHEMES = frozenset(
    ("", "file", "local", "memory", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hf")
)
"""Empty: a path of this machine."""
CHAIN = "::"
"""What fsspec joins several file systems with: the first may fetch what the second names."""


def check_address(address: str, schemes: Collection[str], what: str) -> None:
    """Raise InputError for an address with another scheme, credentials, a query or `..` in it."""
    try:
        parts = urlsplit(address)
    except ValueError as error:
        raise InputError(f"{what} {address!r} is no address: {error}") from error
    scheme = parts.scheme if "://" in address else ""
    if CHAIN in address or scheme not in schemes:
        known = ", ".join(sorted(f"{name}://" for name in schemes if name))
        raise InputError(f"{what} {address!r} is refused; allowed are {known}")
    if not scheme:
        return
    if parts.username or parts.password or parts.query:
        raise InputError(f"{what} {address!r} must hold neither credentials nor a query")
    if ".." in unquote(parts.path).split("/"):
        raise InputError(f"{what} {address!r} must not lead up with '..'")
