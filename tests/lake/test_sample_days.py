"""The sample is what its script makes, small, and poisoned where it says so."""

import json
import subprocess
import sys
from pathlib import Path

from lake_rows import SAMPLES

SAMPLE_BYTES_MAX = 2_000_000


def test_the_script_writes_the_committed_bytes(tmp_path: Path) -> None:
    script = SAMPLES / "make_samples.py"
    subprocess.run([sys.executable, str(script), "--out", str(tmp_path)], check=True)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_bytes() for path in (SAMPLES / "days").iterdir()}
    assert made == kept
    assert len(made) == 6


def test_the_sample_is_small_and_its_good_days_hold_no_personal_data() -> None:
    files = [path for path in SAMPLES.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < SAMPLE_BYTES_MAX
    for path in (SAMPLES / "days").iterdir():
        assert (b"example.com" in path.read_bytes()) == (path.name == "day-4.jsonl")


def test_new_domains_arrive_day_by_day_in_two_languages() -> None:
    seen: set[str] = set()
    for day, new in ((1, 3), (2, 1), (3, 1), (5, 1), (6, 1)):
        rows = []
        for line in (SAMPLES / "days" / f"day-{day}.jsonl").read_bytes().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        domains = {row["domain"] for row in rows}
        assert len(domains - seen) == new
        seen |= domains
        chinese = sum(row["language"] == "zh" for row in rows) / len(rows)
        assert 0.12 < chinese < 0.28
