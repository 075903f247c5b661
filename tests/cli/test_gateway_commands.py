"""`serin bans` and `serin gateway`: what a person sets is what the gateway's files say."""

import json

import pytest
import typer
from typer.testing import CliRunner

from cli.gateway import bans, gateway
from core.errors import InputError, NotFoundError
from core.settings import Settings
from serving.gateway.bans import BanFile
from serving.gateway.mode import Mode, ModeFile


def run(app: typer.Typer, *arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_an_address_is_banned_listed_and_let_in_again(settings: Settings) -> None:
    assert "no address is banned" in run(bans, "list")
    run(bans, "add", "192.0.2.1", "--minutes", "5", "--reason", "a test")
    run(bans, "add", "2001:db8::1:2:3:4")
    lines = run(bans, "list").splitlines()
    assert lines[0].startswith("2001:db8::/64")
    assert lines[1].endswith("a test")
    (first, second) = json.loads(run(bans, "list", "--json"))
    assert second["until_seconds"] - second["since_seconds"] == pytest.approx(300)
    run(bans, "lift", "2001:db8::1")
    assert list(BanFile(settings.home).read()) == ["192.0.2.1"]
    with pytest.raises(NotFoundError, match="not banned"):
        run(bans, "lift", "2001:db8::1")
    with pytest.raises(InputError, match="not an IP address"):
        run(bans, "add", "everybody")
    assert first["address"] == "2001:db8::/64"


def test_the_mode_is_set_and_shown(settings: Settings) -> None:
    assert run(gateway, "show").startswith("normal")
    run(gateway, "degrade", "on", "--reason", "the model is slow")
    assert "the model is slow" in run(
        gateway, "input-filter", "off", "--reason", "the model is slow"
    )
    assert ModeFile(settings.home).read() == Mode(True, "off", "the model is slow")
    assert json.loads(run(gateway, "show", "--json"))["degraded"] is True
    assert run(gateway, "degrade", "off").startswith("normal")
    assert CliRunner().invoke(gateway, ["degrade", "perhaps"]).exit_code == 2
