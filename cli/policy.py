"""`serin policy`: is a safety policy valid, what is in force, and what would change."""

import difflib
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from core.settings import Settings

policy = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Check, show and compare safety policies."
)


@policy.command()
def check(
    file: Annotated[Path, typer.Argument(help="policy as YAML")],
    json_output: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Validate a policy and build its filters; exit 1 and say why when it would be refused."""
    from serving.safety.chain import build_chain
    from serving.safety.policy import read_policy

    found = read_policy(file)
    chain = build_chain(found)
    chain.close()
    told = {"valid": True, "name": found.name, "hash": found.digest, "filters": chain.filters}
    if json_output:
        typer.echo(json.dumps(told))
        return
    typer.echo(f"valid: {found.name}, hash {found.digest}")
    typer.echo(f"filters: {', '.join(chain.filters)}")


@policy.command()
def show(
    file: Annotated[
        Path | None, typer.Argument(help="policy as YAML; default: the one in force")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Print a policy with every value written out, its file and its hash."""
    from serving.safety.policy import policy_yaml

    found, source = _read(file)
    if json_output:
        told = {"hash": found.digest, "file": str(source), "policy": found.model_dump(mode="json")}
        typer.echo(json.dumps(told, ensure_ascii=False))
        return
    typer.echo(f"# {source}\n# hash {found.digest}\n{policy_yaml(found)}", nl=False)


@policy.command()
def diff(
    file: Annotated[Path, typer.Argument(help="policy as YAML")],
    other: Annotated[
        Path | None, typer.Argument(help="compare with this one; default: the one in force")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Print what would change if FILE took the place of the policy in force; exit 1 on changes."""
    from serving.safety.policy import policy_yaml

    new, new_file = _read(file)
    old, old_file = _read(other)
    if json_output:
        changes = differences(old.model_dump(mode="json"), new.model_dump(mode="json"))
        told = {"from": old.digest, "to": new.digest, "changes": changes}
        typer.echo(json.dumps(told, ensure_ascii=False))
    else:
        lines = difflib.unified_diff(
            policy_yaml(old).splitlines(),
            policy_yaml(new).splitlines(),
            f"{old_file} {old.digest[:12]}",
            f"{new_file} {new.digest[:12]}",
            lineterm="",
        )
        typer.echo("\n".join(lines) if old.digest != new.digest else "no difference")
    if old.digest != new.digest:
        raise typer.Exit(1)


def differences(old: Any, new: Any, place: str = "") -> list[dict[str, Any]]:
    """Return each value that differs: its place in the policy, before and after."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = dict.fromkeys([*old, *new])
        return [
            change
            for name in names
            for change in differences(old.get(name), new.get(name), f"{place}.{name}".lstrip("."))
        ]
    return [] if old == new else [{"place": place, "from": old, "to": new}]


def _read(file: Path | None) -> tuple[Any, Path]:
    from serving.safety.active import active_policy
    from serving.safety.policy import read_policy

    return (read_policy(file), file) if file else active_policy(Settings.read().home)
