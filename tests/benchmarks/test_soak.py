"""What explains a failure, and what counts as growth."""

import os
import socket
from collections.abc import Sequence

from benchmarks.soak import KILL, Change, goals, unexplained
from benchmarks.support.soak_processes import Sample, Watched, growth, look
from observability.tally import FailedRequest, Tally


def failed(*times: float) -> list[FailedRequest]:
    return [FailedRequest(time, "answer_cut", 0, "stable", "1", "") for time in times]


def killed(in_flight: int, began: float = 100.0, ended: float = 110.0) -> Change:
    return Change(KILL, 0.0, 10.0, began, ended, in_flight)


def watched(memory: Sequence[float], files: Sequence[int], name: str = "gateway") -> Watched:
    pairs = enumerate(zip(memory, files, strict=True))
    return Watched(name, [Sample(at, mib, mib / 2, count) for at, (mib, count) in pairs])


def test_a_kill_explains_no_more_than_it_found_in_flight() -> None:
    assert unexplained(failed(101.0, 102.0), [killed(2)]) == 0
    assert unexplained(failed(101.0, 102.0, 103.0), [killed(2)]) == 1


def test_what_failed_before_a_kill_or_after_its_successor_answers_is_unexplained() -> None:
    assert unexplained(failed(99.0, 120.0), [killed(5)]) == 2


def test_another_change_explains_nothing() -> None:
    change = Change("policy reloaded", 0.0, 10.0, 100.0, 110.0, 5)
    assert unexplained(failed(101.0), [change]) == 1


def test_growth_is_counted_from_after_the_warm_up() -> None:
    row = growth(watched([10.0] * 10 + [100.0] * 10 + [110.0] * 10, [5] * 30), 10.0)
    assert row is not None
    assert row["pss_mib"] == [100.0, 110.0]
    assert row["pss_growth_percent"] == row["anonymous_growth_percent"] == 10.0
    assert row["open_files_growth"] == 0


def test_files_of_a_moment_are_no_growth_and_files_that_stay_are() -> None:
    moment = growth(watched([1.0] * 20, [5] * 18 + [9, 5]), 0.0)
    stays = growth(watched([1.0] * 20, [5] * 10 + [6] * 10), 0.0)
    assert moment is not None
    assert stays is not None
    assert (moment["open_files_growth"], stays["open_files_growth"]) == (0, 1)


def test_a_process_that_never_was_warm_has_no_growth() -> None:
    assert growth(watched([1.0] * 5, [5] * 5), 60.0) is None


def test_prometheus_is_shown_and_not_judged() -> None:
    memory = {"gateway": 10.1, "prometheus": 20.0}
    grew = [
        growth(watched([10.0] * 10 + [last] * 10, [5] * 20, name), 0)
        for name, last in memory.items()
    ]
    rows = [row for row in grew if row is not None]
    assert [row["anonymous_growth_percent"] for row in rows] == [1.0, 100.0]
    found = {goal["name"]: goal for goal in goals(Tally(10, 1).report(), [], rows, 0)}
    assert found["largest growth of a process's own memory in percent"]["value"] == 1.0


def test_a_look_at_this_process_sees_its_memory_and_files() -> None:
    before = look(os.getpid(), 0.0)
    with open(os.devnull) as _:
        after = look(os.getpid(), 1.0)
    assert before is not None
    assert after is not None
    assert after.files == before.files + 1
    assert 1 < before.anonymous_mib < before.pss_mib < 100_000


def test_connections_to_predictors_are_counted_apart() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        before = look(os.getpid(), 0.0, {port})
        with socket.create_connection(("127.0.0.1", port)):
            kept, other = look(os.getpid(), 1.0, {port}), look(os.getpid(), 1.0, {port + 1})
    assert before is not None
    assert kept is not None
    assert other is not None
    assert (kept.files, kept.connections) == (before.files, 1)
    assert (other.files, other.connections) == (before.files + 1, 0)
