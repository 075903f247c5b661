"""What is found, where, and what is left alone."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.support import pii_corpus, pii_held_out
from benchmarks.support.pii_corpus import STRUCTURED
from benchmarks.support.pii_scores import pooled, score
from privacy.checksums import base58check, bech32, cn_id_card, iban, luhn, mrz, us_ssn
from privacy.pii import TYPES, PiiConfig, Recogniser, Scanner, Span
from tests.growth import growth

KEY_LINES = "\n".join("MIIEpAIBAAKCAQEA" * 4 for _ in range(12))
MRZ_LINES = (
    "P<UTOERIKSSON<<ANNA<MARIA<<<<<<<<<<<<<<<<<<<\nL898902C36UTO7408122F1204159ZE184226B<<<<<10"
)
FOUND = [
    ("EMAIL_ADDRESS", "mail jo.smith+x@mail.example.co.uk now", "jo.smith+x@mail.example.co.uk"),
    ("EMAIL_ADDRESS", "name at example dot com", "name at example dot com"),
    ("EMAIL_ADDRESS", "to john [at] example [dot] org!", "john [at] example [dot] org"),
    ("EMAIL_ADDRESS", "j o h n @ e x a m p l e . c o m", "j o h n @ e x a m p l e . c o m"),
    ("EMAIL_ADDRESS", "邮箱ｊｏ＠example．com。", "ｊｏ＠example．com"),
    ("EMAIL_ADDRESS", "a\u200bb@exam\u200bple.com", "a\u200bb@exam\u200bple.com"),
    ("PHONE_NUMBER", "call +44 (0)20 7946 0018.", "+44 (0)20 7946 0018"),
    ("PHONE_NUMBER", "Tel. (02328) 60129", "(02328) 60129"),
    ("PHONE_NUMBER", "手机1 3 8 0 0 1 3 8 0 0 0。", "1 3 8 0 0 1 3 8 0 0 0"),
    ("PHONE_NUMBER", "打一三八零零一三八零零零", "一三八零零一三八零零零"),
    ("PHONE_NUMBER", "座机0571-88888888转802", "0571-88888888转802"),
    ("CREDIT_CARD", "card 5555-5555-5555-4444 5", "5555-5555-5555-4444"),
    ("CREDIT_CARD", "pay ４１１１１１１１１１１１１１１１", "４１１１１１１１１１１１１１１１"),
    ("CN_BANK_CARD", "银行卡6222021234567890128", "6222021234567890128"),
    ("IBAN_CODE", "to DE89 3704 0044 0532 0130 00, please", "DE89 3704 0044 0532 0130 00"),
    ("US_SSN", "it is 219-09-9999", "219-09-9999"),
    ("US_SSN", "social security number 219099999", "219099999"),
    ("CN_ID_CARD", "身份证11010519491231002X", "11010519491231002X"),
    ("PASSPORT", "护照号E12345678", "E12345678"),
    ("PASSPORT", MRZ_LINES, MRZ_LINES),
    ("IP_ADDRESS", "from [2001:db8::8a2e:370:7334]:443", "2001:db8::8a2e:370:7334"),
    ("IP_ADDRESS", "192.168.10.254/24", "192.168.10.254"),
    ("MAC_ADDRESS", "nic 00:1A:2b:3c:4d:5e up", "00:1A:2b:3c:4d:5e"),
    ("URL", "see postgres://app:s3cr3t@db:5432/x.", "postgres://app:s3cr3t@db:5432/x"),
    ("API_KEY", "AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
    ("API_KEY", 'api_key = "q8Zt4Lw0Rk2Vb6Xn1"', "q8Zt4Lw0Rk2Vb6Xn1"),
    (
        "JWT",
        "Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    ),
    ("CRYPTO", "to 1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"),
    ("LICENSE_PLATE", "车牌粤B12345D", "粤B12345D"),
    ("LICENSE_PLATE", "Kennzeichen B-MW 1234", "B-MW 1234"),
    ("DATE_OF_BIRTH", "born on 7 March 1990 in Leeds", "7 March 1990"),
    ("DATE_OF_BIRTH", "出生日期：1990年3月7日", "1990年3月7日"),
    ("PERSON", "My name is Jane O'Neill, hello", "Jane O'Neill"),
    ("PERSON", "姓名：欧阳娜娜，", "欧阳娜娜"),
    ("LOCATION", "at 221B Baker Street, London NW1 6XE.", "221B Baker Street, London NW1 6XE"),
    ("LOCATION", "我住在北京市海淀区中关村大街27号", "北京市海淀区中关村大街27号"),
]
LEFT_ALONE = [
    "order W-10482 of 2026-05-01T06:00:00+00:00",
    "card 4111 1111 1111 1112 fails the check",
    "EAN 4006381333931, tracking 1Z999AA10123456784",
    "it costs 1,299.95 or 12345678",
    "icon@2x.png and a @ b, user@localhost",
    "look at example dot com",
    "version 10.0.19.45 and chapter 1.2.3",
    "std::vector and at 10:30:45",
    "000-12-3456 and 666-12-3456 are never given out",
    "110105194912310021 has another check digit",
    "订单号123456789012，共3件，2026年5月1日发货",
    "The meeting is on 7 March 1990",
    "[EMAIL_ADDRESS] and [PHONE_NUMBER_0123456789ab]",
    "",
]


@pytest.fixture(scope="module")
def scanner() -> Scanner:
    return Scanner()


@pytest.mark.parametrize(("type_", "text", "value"), FOUND)
def test_each_type_is_found_where_it_stands(
    scanner: Scanner, type_: str, text: str, value: str
) -> None:
    spans = scanner.scan(text)
    assert [(span.type, text[span.start : span.end]) for span in spans] == [(type_, value)]
    assert 0.5 <= spans[0].score <= 1


def test_a_private_key_is_found_in_whole_also_as_json_writes_it(scanner: Scanner) -> None:
    key = f"-----BEGIN RSA PRIVATE KEY-----\n{KEY_LINES}\n-----END RSA PRIVATE KEY-----"
    for text in (f"x {key} y", json.dumps({"text": f"x {key} y"})):
        assert [span.type for span in scanner.scan(text)] == ["PRIVATE_KEY"]
        redacted, _ = scanner.redact(text)
        assert "MII" not in redacted
        assert "KEY--" not in redacted


def test_values_behind_escaped_line_breaks_are_found(scanner: Scanner) -> None:
    text = json.dumps({"text": "first\n4111111111111111\njo@example.com\n13800138000"})
    found = [text[span.start : span.end] for span in scanner.scan(text)]
    assert found == ["4111111111111111", "jo@example.com", "13800138000"]


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_other_texts_are_left_alone(scanner: Scanner, text: str) -> None:
    assert scanner.scan(text) == []


@pytest.mark.parametrize("corpus", [pii_corpus, pii_held_out])
def test_labelled_texts_meet_the_goals(scanner: Scanner, corpus: object) -> None:
    generate = pii_corpus.generate if corpus is pii_corpus else pii_held_out.generate
    documents = [item for item in generate(4, 11) if not item.source.endswith("obfuscated")]
    found = scanner.scan_many([item.text for item in documents])
    named = [[(span.type, span.start, span.end) for span in spans] for spans in found]
    recall, precision = pooled(score(documents, named, STRUCTURED), STRUCTURED)
    assert recall == 1.0
    assert precision >= 0.99


def test_bulk_and_single_scans_agree_and_texts_do_not_touch(scanner: Scanner) -> None:
    texts = [text for _, text, _ in FOUND] * 3 + LEFT_ALONE + ["0", "13800138000", "\0", "\ufeff"]
    random.Random(3).shuffle(texts)
    assert scanner.scan_many(texts) == [scanner.scan(text) for text in texts]
    assert scanner.scan_many(["1380013", "8000"]) == [[], []]
    assert scanner.scan_many([]) == []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=80), max_size=4))
def test_any_text_gives_sorted_spans_that_do_not_overlap(texts: list[str]) -> None:
    for text, spans in zip(texts, Scanner().scan_many(texts), strict=True):
        edges = [edge for span in spans for edge in (span.start, span.end)]
        assert edges == sorted(edges)
        assert all(0 <= span.start < span.end <= len(text) for span in spans)


@pytest.mark.parametrize(
    "piece",
    [
        "a:",
        "ab:",
        "::",
        "://a:",
        "John Smith ",
        "1990-01-01 born ",
        "5 Elm Street ",
        "6222 ",
        "eyJ.",
        "-----BEGIN PRIVATE KEY-----",
        "one two ",
        "a at b dot ",
        "北京市路1号",
        "Hauptstr. 1 ",
        "key=",
    ],
)
def test_hostile_text_takes_linear_time(scanner: Scanner, piece: str) -> None:
    # Four times the text: 4 for linear time, 16 for quadratic.
    assert growth(lambda count: scanner.scan(piece * count + "@x 1234567"), 5_000, 20_000) < 8


def test_types_and_certainty_are_chosen(scanner: Scanner) -> None:
    text = "jo@example.com, 13800138000, Kennzeichen B-MW 1234"
    only = Scanner(PiiConfig(types=("EMAIL_ADDRESS",)))
    assert [span.type for span in only.scan(text)] == ["EMAIL_ADDRESS"]
    sure = Scanner(PiiConfig(score_min=0.99))
    assert [span.type for span in sure.scan(text)] == ["EMAIL_ADDRESS"]
    assert len(scanner.scan(text)) == 3
    with pytest.raises(ValueError, match="unknown types"):
        Scanner(PiiConfig(types=("SHOE_SIZE",)))


def test_a_recogniser_adds_its_spans_and_the_more_certain_wins() -> None:
    class Words:
        def recognise(self, texts: list[str]) -> list[list[Span]]:
            return [[Span("PERSON", 0, 4, 0.9), Span("PERSON", 5, 19, 0.6)] for _ in texts]

    recogniser: Recogniser = Words()  # type: ignore[assignment]  # a list is a sequence of texts
    spans = Scanner(recognisers=[recogniser]).scan("Jane jo@example.com")
    assert [(span.type, span.start, span.end) for span in spans] == [
        ("PERSON", 0, 4),
        ("EMAIL_ADDRESS", 5, 19),
    ]


def test_each_thread_has_a_scanner_of_its_own() -> None:
    def work(_: int) -> int:
        return len(Scanner().scan("jo@example.com and 13800138000"))

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(work, range(40))) == {2}


def test_published_numbers_pass_their_checks() -> None:
    assert luhn("378282246310005")
    assert not luhn("4111111111111112")
    assert iban("GB82WEST12345698765432")
    assert not iban("GB82WEST12345698765433")
    assert cn_id_card("11010519491231002X")
    assert us_ssn("219099999")
    assert not us_ssn("900123456")
    assert base58check("1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa")
    assert bech32("bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4")
    assert not bech32("bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t5")
    assert mrz(MRZ_LINES.split("\n")[1])
    assert len(TYPES) == 19
