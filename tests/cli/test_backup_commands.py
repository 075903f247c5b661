"""`serin backup` where there is no backup: said so, and nothing is made."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli.backup import backup
from core.errors import NotFoundError
from core.settings import Settings


@pytest.mark.parametrize("action", ["verify", "drill"])
def test_a_place_without_a_backup_is_refused_and_the_home_stays_as_it_was(
    settings: Settings, tmp_path: Path, action: str
) -> None:
    before = sorted(settings.home.rglob("*"))
    app = typer.Typer()
    app.command()(backup)
    result = CliRunner().invoke(app, [action, str(tmp_path / "place")])
    assert isinstance(result.exception, NotFoundError)
    assert sorted(settings.home.rglob("*")) == before
