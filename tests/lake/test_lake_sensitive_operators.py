"""What takes the place of sensitive data is chosen in the ingestion's configuration."""

from pathlib import Path
from typing import Any

import pytest
from lake_rows import Row, make_rows, plain_check, to_lines
from pydantic import ValidationError

from lake.config import IngestConfig, SensitiveConfig
from lake.sensitive import replacement
from lake.sources import list_days
from lake.table import IngestReport, Lake
from privacy.operators import OperatorName
from privacy.token_labels import TokenLabelsConfig
from tests.token_model import make_token_model

MAIL, OTHER = "jo.doe@example.com", "ann@example.org"
TEXT = f"write to {MAIL}"
SENSITIVE = "it holds sensitive data"


def replaced(text: str, **sensitive: Any) -> str:
    config = IngestConfig(data="days", sensitive=SensitiveConfig(**sensitive))
    return replacement(config)([text])[0]


def test_operators_leave_nothing_the_kind_or_a_tag(tmp_path: Path) -> None:
    assert replaced(TEXT) == replaced(TEXT, operator="replace") == "write to [EMAIL]"
    assert replaced(TEXT, operator="redact") == "write to [REDACTED]"
    key = tmp_path / "keys" / "own"
    for operator in ("pseudonym", "hash"):
        again, other = (replaced(text, operator=operator, key_file=key) for text in (MAIL, OTHER))
        assert replaced(TEXT, operator=operator, key_file=key) == f"write to {again}"
        assert again.startswith("[EMAIL_ADDRESS_")
        assert again != other
    assert key.stat().st_mode & 0o077 == 0


def test_another_key_gives_other_pseudonyms(tmp_path: Path) -> None:
    keys = (tmp_path / "first", tmp_path / "second")
    first, second = (replaced(MAIL, operator="pseudonym", key_file=key) for key in keys)
    assert first != second


def test_a_type_may_have_an_operator_of_its_own() -> None:
    text = f"{TEXT} from 203.0.113.77"
    assert replaced(text, by_type={"IP_ADDRESS": "redact"}) == "write to [EMAIL] from [REDACTED]"


def test_without_scrubbing_texts_stay() -> None:
    assert replacement(IngestConfig(data="days", scrub=False))([TEXT]) == [TEXT]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"operator": "pseudonym"}, "key_file"),
        ({"by_type": {"PERSON": "pseudonym"}}, "key_file"),
        ({"by_type": {"EMAIL": "hash"}}, "EMAIL_ADDRESS"),
        ({"operator": "keep"}, "pseudonym"),
    ],
)
def test_a_configuration_that_cannot_work_says_what_to_do(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        SensitiveConfig(**wrong)


def ingested(
    lake: Lake, data: Path, config: IngestConfig, sensitive: SensitiveConfig
) -> tuple[IngestReport, list[Row], list[Row]]:
    """Take in ten plain rows and one with an address in each place; return report and rows."""
    rows = make_rows(10)
    for index, field in enumerate(("text", "intent", "domain", "id")):
        row = make_rows(1, id=f"p{index}", text=f"own {index}")[0]
        rows.append({**row, field: f"{row[field]} {MAIL}"})
    (data / "day-1.jsonl").write_bytes(to_lines(rows))
    chosen = config.model_copy(update={"sensitive": sensitive})
    report = lake.ingest_day(list_days(config.data).days[0], chosen, plain_check)
    stored = [dict(row) for rows in lake.rows([1]) for row in rows]
    return report, stored, lake.quarantined()


def test_rows_are_dropped_into_quarantine_wherever_the_value_stands(
    lake: Lake, data: Path, config: IngestConfig
) -> None:
    report, records, refused = ingested(lake, data, config, SensitiveConfig(operator="drop"))
    assert (report.kept, report.quarantined) == (10, 4)
    assert len(records) == 10
    assert {row["reason"] for row in refused} == {SENSITIVE}
    assert MAIL not in str(refused)


@pytest.mark.parametrize("operator", ["redact", "pseudonym", "hash"])
def test_originals_are_not_stored_under_any_operator(
    lake: Lake, data: Path, config: IngestConfig, tmp_path: Path, operator: OperatorName
) -> None:
    sensitive = SensitiveConfig(operator=operator, key_file=tmp_path / "key")
    report, records, _ = ingested(lake, data, config, sensitive)
    assert (report.kept, report.quarantined) == (14, 0)
    assert MAIL not in str(records)
    mark = "[REDACTED]" if operator == "redact" else "[EMAIL_ADDRESS_"
    assert str(records).count(mark) >= 3


def test_a_model_finds_names_in_records_and_in_refused_rows(
    lake: Lake, data: Path, config: IngestConfig, tmp_path: Path
) -> None:
    text = "zorblax quint lives in mossgard"
    rows = [*make_rows(3), make_rows(1, text=text, id="named")[0], {"id": "bad", "text": [text]}]
    (data / "day-1.jsonl").write_bytes(to_lines(rows))
    sensitive = SensitiveConfig(
        model=TokenLabelsConfig(folder=make_token_model(tmp_path / "model")),
        by_type={"LOCATION": "redact"},
    )
    chosen = config.model_copy(update={"sensitive": sensitive})
    report = lake.ingest_day(list_days(config.data).days[0], chosen, plain_check)
    assert (report.kept, report.quarantined) == (4, 1)
    stored = {row["record_id"]: row["prompt"] for part in lake.rows([1]) for row in part}
    assert stored["named"] == "[PERSON] lives in [REDACTED]"
    assert "[PERSON] lives in [LOCATION]" in lake.quarantined()[0]["text"]
