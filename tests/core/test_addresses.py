"""Addresses of bundles and data are taken from listed places only, and lead nowhere else."""

import pytest

from core.addresses import BUNDLE_SCHEMES, DATA_SCHEMES, check_address
from core.errors import InputError


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254/latest/meta-data",
        "https://example.com/bundle",
        "ftp://example.com/x",
        "simplecache::http://example.com/x",
        "filecache::file:///etc",
        "zip://a.csv::https://example.com/x.zip",
        "reference://x",
        "ssh://host/x",
        "s3://bucket/../other",
        "file:///bundles/%2e%2e/%2e%2e/etc",
        "s3://key:secret@bucket/x",
        "s3://bucket/x?endpoint=http://other",
        "http://[bad/x",
    ],
)
def test_other_addresses_are_refused(address: str) -> None:
    for schemes in (BUNDLE_SCHEMES, DATA_SCHEMES):
        with pytest.raises(InputError, match="data"):
            check_address(address, schemes, "data")


def test_listed_ones_are_taken() -> None:
    for address in ("file:///bundles/a", "pvc://bundles/a", "s3://bucket/a", "gs://bucket/a"):
        check_address(address, BUNDLE_SCHEMES, "bundle")
    for address in ("days", "/data/days", "../days", "s3://bucket/days", "memory://feed"):
        check_address(address, DATA_SCHEMES, "data")
    with pytest.raises(InputError, match="allowed are file://, gs://, pvc://, s3://"):
        check_address("/bundles/a", BUNDLE_SCHEMES, "bundle")
