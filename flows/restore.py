"""Backups each day, and each week the proof that they can be restored."""

from typing import Any

from prefect import flow

from tasks.backing_up import BackupConfig, drill_backup, make_backup, open_backup_run, told


@flow(name="backup", log_prints=False)
def backup(config: BackupConfig = BackupConfig()) -> Any:
    """Keep what a new machine needs; without a place for backups there is nothing to do."""
    run = open_backup_run("backup")
    return told(run, make_backup(run, config))


@flow(name="restore", log_prints=False)
def restore(config: BackupConfig = BackupConfig()) -> Any:
    """Restore the newest backup into a scratch place, serve stable there, compare its answers."""
    run = open_backup_run("drill")
    return told(run, drill_backup(run, config))
