"""A flow that takes one day in, spread or not; a test loads it from its file, as a worker does."""

from pathlib import Path

from prefect import flow

from lake.config import IngestConfig
from lake.snapshots import create_snapshot
from lake.sources import list_days
from lake.table import IngestReport, Lake
from tasks.runners import spreading
from validation.records import check_rows


@flow(validate_parameters=False)
def spread_day(folder: Path, config: IngestConfig) -> tuple[IngestReport, str]:
    """Take the first day in and cut it; return the report and the snapshot's id."""
    lake = Lake(str(folder / "lake"))
    day = list_days(config.data).days[0]
    with spreading(config.scale) as spread:
        report = lake.ingest_day(day, config, check_rows, spread=spread)
    snapshot = create_snapshot(lake, None, (), folder / "snapshots", 5)
    assert snapshot is not None
    return report, snapshot.snapshot_id
