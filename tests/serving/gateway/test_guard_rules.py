"""The guard's rules, each alone: addresses, strikes, bans, budgets, lengths, keys."""

import logging
from pathlib import Path

import pytest

from core.errors import ConfigurationError, InputError
from serving.gateway.addresses import UNKNOWN, client_address, is_in, networks
from serving.gateway.bans import Ban, BanFile, Bans
from serving.gateway.budgets import Budgets
from serving.gateway.guard_config import GuardConfig
from serving.gateway.keys import Caller, KeyLimits, Keys
from serving.gateway.lengths import InputLengths
from serving.gateway.mode import Mode, ModeFile
from serving.gateway.reply import Refusal
from serving.gateway.strikes import Strikes
from serving.gateway.tokens import hash_token

PROXIES = networks(["10.0.0.0/8", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("203.0.113.9", "198.51.100.1", "203.0.113.9"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "1.2.3.4, 198.51.100.1, 10.9.9.9", "198.51.100.1"),
        ("10.0.0.1", "1.2.3.4, nonsense, 10.9.9.9", "10.9.9.9"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("fd00::1", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:10.0.0.1", "[2001:db8::1]", "2001:db8::/64"),
        ("", "198.51.100.1", UNKNOWN),
    ],
)
def test_only_trusted_proxies_say_who_the_client_is(
    peer: str, forwarded: str, expected: str
) -> None:
    headers = {b"x-forwarded-for": forwarded.encode()}
    assert client_address(peer, headers, PROXIES) == expected
    assert client_address("198.51.100.7", headers, ()) == "198.51.100.7"


def test_networks_hold_their_addresses() -> None:
    assert is_in("10.1.2.3", PROXIES)
    assert is_in("fd00:1::/64", PROXIES)
    assert not is_in("192.0.2.1", PROXIES)
    assert not is_in(UNKNOWN, PROXIES)
    with pytest.raises(ValueError, match="ban_exempt"):
        GuardConfig(ban_exempt=("everybody",))


def test_a_strike_too_many_within_a_minute_is_noticed() -> None:
    strikes = Strikes(3, addresses_max=10)
    assert [strikes.add("a", now) for now in (0, 30, 50, 59)] == [False, False, False, True]
    slow = [strikes.add("b", now) for now in range(0, 200, 20)]
    assert not any(slow)
    strikes.forget("a")
    assert not strikes.add("a", 59)


def test_a_flood_of_addresses_takes_no_more_memory() -> None:
    strikes = Strikes(3, addresses_max=100)
    for number in range(10_000):
        strikes.add(f"192.0.2.{number}", float(number))
        strikes.add("203.0.113.1", float(number))
    assert len(strikes) == 100
    assert strikes.add("203.0.113.1", 10_000.0)


def test_bans_last_are_shared_and_can_be_lifted(tmp_path: Path) -> None:
    now = [1000.0]
    file = BanFile(tmp_path, lambda: now[0])
    ours, theirs = (Bans(file, lambda: now[0]) for _ in range(2))
    ours.ban("192.0.2.1", 60, "too much")
    assert ours.seconds_left("192.0.2.1") == 60
    assert theirs.look() == []
    ours.look()
    theirs.look()
    assert theirs.seconds_left("192.0.2.1") == 60
    assert file.lift("192.0.2.1")
    assert not file.lift("192.0.2.1")
    assert ours.look() == ["192.0.2.1"]
    assert ours.seconds_left("192.0.2.1") == 0
    file.add(Ban("192.0.2.2", now[0], now[0] + 10, "by hand"))
    ours.look()
    now[0] += 11
    assert ours.seconds_left("192.0.2.2") == 0
    assert file.read() == {}


def test_bans_stay_in_force_while_their_file_is_damaged(tmp_path: Path) -> None:
    file = BanFile(tmp_path)
    bans = Bans(file)
    bans.ban("192.0.2.1", 60, "too much")
    bans.look()
    (tmp_path / "control" / "bans.json").write_text("[")
    with pytest.raises(InputError, match="damaged"):
        bans.look()
    assert bans.seconds_left("192.0.2.1") > 50


def caller(**limits: float) -> Caller:
    return Caller("192.0.2.1", "ours", KeyLimits(sha256="0" * 64, **limits))


def test_requests_are_refused_when_used_up_and_come_back() -> None:
    now = [0.0]
    budgets = Budgets(lambda: now[0])
    ours = caller(requests_per_minute=2)
    budgets.enter(ours)
    budgets.enter(ours)
    with pytest.raises(Refusal) as refused:
        budgets.enter(ours)
    assert (refused.value.status, refused.value.code) == (429, "requests_used_up")
    assert (b"retry-after", b"30") in refused.value.headers
    now[0] = 30.0
    budgets.enter(ours)
    budgets.enter(Caller("192.0.2.1"))


def test_tokens_are_charged_after_the_answer() -> None:
    now = [0.0]
    budgets = Budgets(lambda: now[0])
    ours = caller(tokens_per_minute=100)
    budgets.enter(ours)
    budgets.charge(ours, 250)
    with pytest.raises(Refusal, match="tokens per minute are used up"):
        budgets.enter(ours)
    now[0] = 91.0
    budgets.enter(ours)


def test_long_inputs_are_filtered_from_one_share_and_let_in_again_below_another() -> None:
    lengths = InputLengths(GuardConfig(input_requests_min=10))
    assert lengths.is_long(20_001)
    assert not lengths.is_long(20_000)
    for number in range(9):
        lengths.add(True, number / 10)
    assert not lengths.filtering(1)  # too few to tell
    lengths.add(True, 1)
    assert lengths.filtering(1)
    for _ in range(40):
        lengths.add(False, 2)
    assert lengths.share(2) == pytest.approx(0.2)
    assert lengths.filtering(2)
    for _ in range(20):
        lengths.add(False, 3)
    assert not lengths.filtering(3)
    assert lengths.share(70) is None


def keys(home: Path, given: str = "", required: bool = False) -> Keys:
    return Keys(home / "keys.yaml", given, required)


def bearer(token: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {token}".encode()}


def test_without_keys_everybody_may_ask_unless_they_are_required(tmp_path: Path) -> None:
    assert keys(tmp_path).identify({}, "a") == Caller("a")
    with pytest.raises(Refusal) as refused:
        keys(tmp_path, required=True).identify({}, "a")
    assert refused.value.status == 401


def test_keys_come_and_go_with_the_file(tmp_path: Path) -> None:
    known = keys(tmp_path, given=f"robot={hash_token('r')}")
    assert known.identify(bearer("r"), "a").key == "robot"
    path = tmp_path / "keys.yaml"
    path.write_text(
        f"one: {hash_token('1')}\ntwo: {{sha256: {hash_token('2')}, priority: 1, "
        "requests_per_minute: 60}\n"
    )
    assert known.identify(bearer("1"), "a").key == "one"
    found = known.identify({b"x-api-key": b"2"}, "a")
    assert (found.key, found.priority) == ("two", 1)
    for headers in ({}, bearer("3"), bearer(hash_token("1")), {b"authorization": b"Basic 1"}):
        with pytest.raises(Refusal):
            known.identify(headers, "a")
    path.unlink()
    with pytest.raises(Refusal):
        known.identify(bearer("1"), "a")


@pytest.mark.parametrize(
    "text",
    ["- a", "one: secret-token", "one: {sha256: 12}", "one: {priority: 3}", "one: [", "{1: 2}",
     "one: {sha256: %s, priority: 11}", "one: {sha256: %s, secret-token: 1}"],
)  # fmt: skip
def test_a_file_of_keys_that_is_wrong_admits_nobody_and_leaks_nothing(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "keys.yaml").write_text(text.replace("%s", hash_token("1")))
    with caplog.at_level(logging.DEBUG), pytest.raises(Refusal):
        keys(tmp_path).identify(bearer("1"), "a")
    assert "keys.yaml" in caplog.text
    assert "secret-token" not in caplog.text


@pytest.mark.parametrize("given", ["one", "one=two", "=", "one=" + "A" * 64])
def test_malformed_keys_of_the_environment_are_refused_at_the_start(
    tmp_path: Path, given: str
) -> None:
    with pytest.raises(ConfigurationError, match="SERIN_GATEWAY_KEYS"):
        keys(tmp_path, given)


def test_the_mode_is_what_was_written_last(tmp_path: Path) -> None:
    file = ModeFile(tmp_path)
    assert file.read() == Mode()
    file.write(Mode(degraded=True, input_filter="on", reason="drill"))
    assert ModeFile(tmp_path).read() == Mode(True, "on", "drill")
    (tmp_path / "control" / "mode.json").write_text('{"degrade": true}')
    with pytest.raises(InputError, match=r"mode\.json"):
        file.read()
