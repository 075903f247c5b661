"""The `serin` command line: a table of commands, each imported only when it is used."""

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperGroup

from cli.environment import silence
from core.errors import SerinError

COMMANDS: Mapping[str, tuple[str, str]] = {
    "run": ("cli.run:run", "Run the daily loop over a folder of daily files."),
    "up": ("cli.stack:up", "Start everything on loopback and print the addresses."),
    "down": ("cli.stack:down", "Stop everything that `serin up` started."),
    "status": ("cli.status:status", "Show what serves, the running release and the last runs."),
    "health": ("cli.health:health", "Show the health matrix; keep it from acting for a while."),
    "history": ("cli.history:history", "What served when, who approved and why; check the chain."),
    "approve": ("cli.approvals:approve", "Approve a release that waits for it."),
    "reject": ("cli.approvals:reject", "Reject a release that waits for approval."),
    "approver": ("cli.approvals:approver", "Say who may approve and reject releases."),
    "rollback": ("cli.release:rollback", "Take traffic back to the version before."),
    "judge": ("cli.judge:judge", "Replay a recorded canary through the judge."),
    "alert-rule": ("cli.alert_rule:alert_rule", "Print the classic rule as a PrometheusRule."),
    "safety": ("cli.safety:safety", "Try the safety chain on a file of texts."),
    "policy": ("cli.policy:policy", "Check, show and compare safety policies."),
    "pii": ("cli.pii:pii", "Find sensitive data in files, and check what the lake holds."),
    "ingest": ("cli.data:ingest", "Take daily files into the lake, without training."),
    "quarantine": ("cli.data:quarantine", "List, show and re-admit records that were refused."),
    "lineage": ("cli.lineage:lineage", "Tell which snapshots and versions hold a record."),
    "forget": ("cli.lineage:forget", "Erase records, and keep them out (dry run by default)."),
    "audit": ("cli.audit:audit", "Check the record of requests and answers, and search it."),
    "bans": ("cli.gateway:bans", "List, add and lift bans of client addresses."),
    "gateway": ("cli.gateway:gateway", "Degrade the gateway, or filter long inputs, for now."),
    "backup": ("cli.backup:backup", "Back up the home; list, verify and drill its backups."),
    "restore": ("cli.backup:restore", "Make a home again from a backup."),
    "gc": ("cli.data:gc", "Delete what nothing refers to any more (dry run by default)."),
}
"""Command: where its function is, and the line that `serin --help` shows."""


class LazyGroup(TyperGroup):
    """Shows every command from the table; imports a command's module only when it is used."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the command that `args` start with, now with its real function and options."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, load(name) if name is not None else command, rest


def load(name: str) -> Any:
    """Import one command: a function, or a Typer application with commands of its own."""
    module, attribute = COMMANDS[name][0].split(":")
    found = getattr(importlib.import_module(module), attribute)
    if not isinstance(found, typer.Typer):
        alone = typer.Typer(add_completion=False)
        alone.command(name)(found)
        found = alone
    return typer.main.get_command(found)


def _only_in_the_overview() -> None:
    """Stand for a command whose module is not imported."""


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Retrain each day, judge, and release behind a canary that can always be taken back.",
)


for _name, (_, _line) in COMMANDS.items():
    app.command(_name, help=_line)(_only_in_the_overview)


def main() -> None:
    """Run the command line. A known error is one line on stderr and exit code 1."""
    silence()
    try:
        app(prog_name="serin")
    except SerinError as error:
        print(f"serin: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
