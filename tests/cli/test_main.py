"""The command line as a whole: overview, errors in one line, nothing heavy loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.environment import QUIET, ROOT, silence, stack_environment
from cli.main import COMMANDS, load
from core.settings import Settings

HEAVY = {"torch", "mlflow", "great_expectations", "evidently", "openvino", "transformers"}
HEAVY |= {"prefect", "kubernetes", "pandas", "deltalake"}


def serin(*arguments: str, home: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        cwd=ROOT,
        env={**os.environ, "SERIN_HOME": str(home), "COLUMNS": "120"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_lists_every_command(tmp_path: Path) -> None:
    shown = serin("--help", home=tmp_path)
    assert shown.returncode == 0
    for name, (_, line) in COMMANDS.items():
        assert name in shown.stdout
        assert line in shown.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_can_be_loaded_and_explains_itself(name: str) -> None:
    assert load(name).help


def test_a_known_error_is_one_line_without_a_trace(tmp_path: Path) -> None:
    failed = serin("approve", "r-1", "--as", "Ada", home=tmp_path)
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert len(failed.stderr.splitlines()) == 1
    assert failed.stderr.startswith("serin: there are no releases")


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    environment = {**os.environ, "SERIN_HOME": str(tmp_path), "SERIN_PORT_GATEWAY": "many"}
    failed = subprocess.run(
        [sys.executable, "-m", "cli.main", "up"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert failed.returncode == 1
    assert failed.stderr.startswith("serin: SERIN_PORT_GATEWAY")


def test_a_wrong_option_is_a_usage_error(tmp_path: Path) -> None:
    assert serin("status", "--jason", home=tmp_path).returncode == 2
    assert serin("statsu", home=tmp_path).returncode == 2


@pytest.mark.parametrize("name", ["up", "status", "history", "run"])
def test_commands_load_nothing_heavy(name: str) -> None:
    loaded = f"print(*sorted({HEAVY!r} & {{*sys.modules}}))"
    code = f"import sys, cli.main; cli.main.load({name!r}); {loaded}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_telemetry_is_off_in_this_process_and_in_every_part(tmp_path: Path) -> None:
    environ: dict[str, str] = {"DO_NOT_TRACK": "false"}
    silence(environ)
    assert environ == {**QUIET}
    assert QUIET.items() <= stack_environment(Settings(home=tmp_path)).items()


def test_loopback_never_goes_through_a_proxy(tmp_path: Path) -> None:
    environ = {"NO_PROXY": "intern.example"}
    bound = stack_environment(Settings(home=tmp_path), environ)
    assert bound["NO_PROXY"] == bound["no_proxy"] == "127.0.0.1,intern.example,localhost"
