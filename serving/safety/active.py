"""Which policy is in force where: the folder that predictors of one home watch."""

from pathlib import Path

from serving.safety.policy import POLICY_NAME, SHIPPED_POLICY, Policy, read_policy


def policy_folder(home: Path) -> Path:
    """Return the folder whose policy.yaml the predictors of this home obey."""
    return home / "policy"


def active_policy(home: Path) -> tuple[Policy, Path]:
    """Return the policy in force for this home and its file. Raises ConfigurationError."""
    file = policy_folder(home) / POLICY_NAME
    file = file if file.exists() else SHIPPED_POLICY
    return read_policy(file), file
