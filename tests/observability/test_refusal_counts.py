"""A flood of refusals becomes few rows, and no refusal is left out of the count."""

from observability.refusal_counts import KINDS_MAX, MANY, RefusalCounts


def test_refusals_of_one_kind_to_one_client_are_one_row() -> None:
    counts = RefusalCounts()
    for client in ("a", "b", "a", "a"):
        counts.add(401, "unauthorised", "", client)
    assert {(row.client, row.count) for row in counts.take()} == {("a", 3), ("b", 1)}
    assert not counts
    assert counts.take() == []


def test_many_clients_are_counted_together_once_there_are_too_many() -> None:
    counts = RefusalCounts()
    for number in range(KINDS_MAX + 50):
        counts.add(429, "busy", "web", f"client-{number}")
    rows = counts.take()
    assert len(rows) == KINDS_MAX + 1
    assert sum(row.count for row in rows) == KINDS_MAX + 50
    (rest,) = (row for row in rows if row.client == MANY)
    assert (rest.count, rest.key, rest.status) == (50, "", 429)
