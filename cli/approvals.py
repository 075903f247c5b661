"""`serin approve`, `reject` and `approver`: a person's answer to a release, and who may answer.

A personal code is typed hidden or comes from the environment; it is never an option or shown.
"""

import getpass
import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from cli.environment import stack_environment
from cli.release import open_ledger
from core.errors import InputError, RefusedError, UnavailableError
from core.settings import Settings

if TYPE_CHECKING:
    from rollout.approvers import Approvers
    from rollout.release import Release

CODE_VARIABLE = "SERIN_APPROVAL_CODE"

ReleaseArgument = Annotated[str, typer.Argument(help="id of the release, see `serin status`")]
NameOption = Annotated[str, typer.Option("--as", help="your name, as the ledger records it")]
NoteOption = Annotated[str, typer.Option(help="kept in the ledger with the decision")]

approver = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Who may approve and reject releases."
)


def approve(release: ReleaseArgument, name: NameOption, note: NoteOption = "") -> None:
    """Approve a release that waits for it; the approval binds to its candidate and verdict."""
    _answer(release, name, note, approves=True)


def reject(release: ReleaseArgument, name: NameOption, note: NoteOption = "") -> None:
    """Reject a release that waits for approval."""
    _answer(release, name, note, approves=False)


@approver.command("add")
def add(name: Annotated[str, typer.Argument(help="the approver's name")]) -> None:
    """Add an approver; the code is asked for twice, or read from SERIN_APPROVAL_CODE."""
    approvers = open_approvers(Settings.read())
    code = read_code(f"new code of {name}: ")
    if not os.environ.get(CODE_VARIABLE) and read_code("again: ") != code:
        raise InputError("the two codes differ; nothing was changed")
    approvers.add(name, code)
    typer.echo(f"{name} may approve; {approvers.path} holds a hash of the code")


@approver.command("remove")
def remove(name: Annotated[str, typer.Argument(help="the approver's name")]) -> None:
    """Remove an approver; what they approved stays in the ledger."""
    open_approvers(Settings.read()).remove(name)
    typer.echo(f"{name} is no approver any more")


@approver.command("list")
def list_names() -> None:
    """List the approvers' names."""
    names = open_approvers(Settings.read()).names()
    typer.echo("\n".join(names) or "no approvers: a single approval is self-declared")


def open_approvers(settings: Settings) -> "Approvers":
    """Return the approvers that the settings name."""
    from rollout.approvers import Approvers

    return Approvers(settings.approvers_file)


def read_code(prompt: str) -> str:
    """Return the code from the environment, else typed without being shown.

    Raises RefusedError where nobody can type.
    """
    if given := os.environ.get(CODE_VARIABLE):
        return given
    if not sys.stdin.isatty():
        raise RefusedError(f"a code is needed: run this in a terminal, or set {CODE_VARIABLE}")
    return getpass.getpass(prompt)


def _answer(release_id: str, name: str, note: str, approves: bool) -> None:
    from rollout.answers import Answer, record_answer

    if not name.strip():
        raise RefusedError("a decision needs a name: --as NAME")
    settings = Settings.read()
    ledger = open_ledger(settings)
    if ledger is None:
        raise RefusedError(f"there are no releases in {settings.home} yet; `serin run` makes them")
    approvers = open_approvers(settings)
    code = read_code(f"code of {name.strip()}: ") if approvers.names() else ""
    answer = Answer(release_id, name, approves, note, code)
    release = record_answer(ledger, approvers, answer)
    typer.echo(_sentence(release))
    if release.approved or not approves:
        typer.echo(_wake(settings, release_id))


def _sentence(release: "Release") -> str:
    given, required = len(release.approvals), release.plan.approvals_required
    reason = f": {release.reason}" if release.reason else ""
    counted = f", {given} of {required} approvals" if given else ""
    version = release.candidate.model_version
    return f"{release.release_id} (version {version}) {release.state}{reason}{counted}"


def _wake(settings: Settings, release_id: str) -> str:
    """Let the run that waits go on at once; the answer is in the ledger either way."""
    os.environ.update(stack_environment(settings))  # Prefect reads its address when imported
    try:
        if not settings.prefect_url:
            raise UnavailableError("no Prefect server is known")
        from tasks.approving import resume_runs

        if resume_runs(release_id):
            return "its run goes on"
    except UnavailableError as error:
        return f"recorded ({error}); the watch goes on with it once Prefect is there"
    return "recorded; the watch goes on with it within a minute"
