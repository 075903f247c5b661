"""`serin judge` on files: verdicts, schedules, empty columns and broken input."""

import io
import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli.judge import judge, parse_shares, replay_stream, share_at
from core.errors import InputError
from validation.judge import SequentialConfig

HEADER = "t,arm,latency_s,error,quality\n"
APP = typer.Typer()
APP.command()(judge)


def rows(requests: int, *, canary_error: int = 0, quality: str = "") -> str:
    lines = [
        f"{index / 10},{'canary' if index % 2 else 'stable'},{(index * 7919 % 1009) / 1009},"
        f"{canary_error if index % 2 else 0},{quality}"
        for index in range(requests)
    ]
    return HEADER + "\n".join(lines) + "\n"


def test_json_names_verdict_place_and_evidence(tmp_path: Path) -> None:
    file = tmp_path / "stream.csv"
    file.write_text(rows(2_000, canary_error=1))
    plot = tmp_path / "evidence.png"
    result = CliRunner().invoke(
        APP, [str(file), "--shares", "0:0.5", "--json", "--plot", str(plot)]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["verdict"] == "rollback"
    assert found["t"] == pytest.approx(found["request_index"] / 10)
    assert found["evidence"]["errors"]["log_evidence_rollback"] > 0
    assert plot.stat().st_size > 1_000


def test_an_empty_quality_column_is_configured_without_data() -> None:
    config = SequentialConfig(seconds_min=0)
    replay = replay_stream(io.StringIO(rows(20_000)), config, [(0, 0.5)])
    assert replay.decision.decision == "continue"
    assert "quality" in replay.decision.reason
    text = rows(20_000).replace(",quality\n", "\n")
    assert replay_stream(io.StringIO(text), config, [(0, 0.5)]).decision.decision == "promote"


def test_shares_change_at_their_time() -> None:
    schedule = parse_shares("0:0.05,1200:0.15")
    assert [share_at(schedule, time) for time in (0, 1199, 1200, 9e9)] == [0.05, 0.05, 0.15, 0.15]
    assert share_at(parse_shares("10:0.5"), 5) == 0.0


@pytest.mark.parametrize("text", ["", "0", "0:2", "5:0.1,1:0.2", "a:b", "0:nan"])
def test_a_broken_schedule_is_a_clear_error(text: str) -> None:
    with pytest.raises(InputError, match="--shares"):
        parse_shares(text)


def test_broken_files_are_clear_errors(tmp_path: Path) -> None:
    config = SequentialConfig()
    with pytest.raises(InputError, match="column"):
        replay_stream(io.StringIO("t,arm\n0,stable\n"), config, [(0, 0.5)])
    with pytest.raises(InputError, match="line 2"):
        replay_stream(io.StringIO(HEADER + "0,blue,0.1,0,\n"), config, [(0, 0.5)])
    with pytest.raises(InputError, match="cannot be read"):
        raise_from_command(tmp_path / "absent.csv")


def raise_from_command(file: Path) -> None:
    result = CliRunner().invoke(APP, [str(file)])
    assert result.exception is not None
    raise result.exception


def test_an_empty_stream_continues() -> None:
    replay = replay_stream(io.StringIO(HEADER), SequentialConfig(), [(0, 0.5)])
    assert replay.decision.decision == "continue"
    assert replay.request_index == -1
