"""The gateway's mode and bans are written so that its own readers understand them."""

from pathlib import Path

import pytest

from core.errors import InputError
from serving.gateway.bans import BanFile
from serving.gateway.mode import Mode, ModeFile
from tasks.gateway_files import ban, is_exempt, switch


def test_switches_are_set_and_given_back_as_they_were(tmp_path: Path) -> None:
    ModeFile(tmp_path).write(Mode(input_filter="off", reason="by hand"))
    held, changed = switch(tmp_path, {"degraded": "latency", "input_filter": "long_inputs"}, {})
    assert changed == {"degraded": True, "input_filter": "on"}
    found = ModeFile(tmp_path).read()
    assert (found.degraded, found.input_filter) == (True, "on")
    assert "latency" in found.reason
    assert switch(tmp_path, {"degraded": "latency", "input_filter": "x"}, held) == (held, {})
    assert switch(tmp_path, {}, held)[0] == {}
    found = ModeFile(tmp_path).read()
    assert (found.degraded, found.input_filter) == (False, "off")


def test_what_a_person_set_before_or_meanwhile_stays(tmp_path: Path) -> None:
    file = ModeFile(tmp_path)
    file.write(Mode(degraded=True, reason="by hand"))
    held, changed = switch(tmp_path, {"degraded": "latency"}, {})
    assert changed == {}
    switch(tmp_path, {}, held)
    assert file.read().degraded
    held, _ = switch(tmp_path, {"input_filter": "long_inputs"}, {})
    file.write(Mode(input_filter="off", reason="by hand"))
    switch(tmp_path, {}, held)
    assert file.read() == Mode(input_filter="off", reason="by hand")


def test_a_ban_is_added_once_and_beside_others(tmp_path: Path) -> None:
    (tmp_path / "control").mkdir()
    assert ban(tmp_path, "203.0.113.7", 60, "health")
    assert not ban(tmp_path, "203.0.113.7", 60, "health")
    assert ban(tmp_path, "2001:db8::/64", 60, "health")
    assert set(BanFile(tmp_path).read()) == {"203.0.113.7", "2001:db8::/64"}


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "control").mkdir()
    (tmp_path / "control" / "mode.json").write_text("{")
    with pytest.raises(InputError, match=r"mode\.json"):
        switch(tmp_path, {"degraded": "latency"}, {})


@pytest.mark.parametrize(
    ("address", "exempt"),
    [("127.0.0.9", True), ("203.0.113.7", False), ("2001:db8::/64", False), ("many", True)],
)
def test_exempt_addresses_are_known(address: str, exempt: bool) -> None:
    assert is_exempt(address, ("127.0.0.0/8", "::1/128")) == exempt
