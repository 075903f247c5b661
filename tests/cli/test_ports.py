"""Ports: taken as asked, refused by name, or the next free one."""

from collections.abc import Iterator

import pytest

from cli.ports import bind, claim
from core.errors import ConfigurationError


@pytest.fixture
def taken_port() -> Iterator[int]:
    with bind(0) as held:
        yield held.getsockname()[1]


def test_a_set_port_is_taken(free_port: int) -> None:
    with claim("gateway", free_port, explicit=True) as held:
        assert held.getsockname() == ("127.0.0.1", free_port)


def test_a_set_port_in_use_is_named_with_its_setting(taken_port: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"port {taken_port} .*SERIN_PORT_MLFLOW"):
        claim("mlflow", taken_port, explicit=True)


def test_a_default_port_in_use_gives_way_to_the_next_free_one(taken_port: int) -> None:
    with claim("mlflow", taken_port, explicit=False) as held:
        assert held.getsockname()[1] > taken_port


def test_ports_promised_to_other_parts_are_passed_over(free_port: int) -> None:
    with claim("mlflow", free_port, explicit=False, avoid={free_port}) as held:
        assert held.getsockname()[1] != free_port


def test_zero_takes_any_free_port() -> None:
    with claim("a", 0, explicit=True) as one, claim("b", 0, explicit=False) as two:
        assert one.getsockname() != two.getsockname()
