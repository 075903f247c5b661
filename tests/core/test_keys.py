"""Key files: made once, private, the same for everybody, and named when something is wrong."""

import stat
import threading
from pathlib import Path

import pytest

from core.errors import ConfigurationError
from core.keys import read_key


def test_the_key_is_made_once_private_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "control" / "response.key"
    key = read_key(path)
    assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_key(path) == key
    assert [item.name for item in path.parent.iterdir()] == ["response.key"]


def test_processes_that_start_together_get_the_same_key(tmp_path: Path) -> None:
    path, keys = tmp_path / "response.key", set[bytes]()
    barrier = threading.Barrier(16)

    def read() -> None:
        barrier.wait()
        keys.add(read_key(path))

    threads = [threading.Thread(target=read) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 1


def test_a_key_that_others_could_read_becomes_private(tmp_path: Path) -> None:
    path = tmp_path / "response.key"
    key = read_key(path)
    path.chmod(0o644)
    assert read_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_damaged_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "response.key"
    path.write_bytes(b"short")
    with pytest.raises(ConfigurationError, match=r"response\.key.*delete it"):
        read_key(path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "control").write_text("a file")
    with pytest.raises(ConfigurationError, match=r"response\.key"):
        read_key(tmp_path / "control" / "response.key")
