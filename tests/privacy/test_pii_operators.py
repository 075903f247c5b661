"""What takes the place of sensitive data."""

import pytest

from core.errors import ConfigurationError
from privacy.operators import by_type, drop, hashed, named, pseudonym, redact, replace
from privacy.pii import Scanner

TEXT = "mail jo@example.com or JO@Example.com, call 138 0013 8000"
KEY = b"0123456789abcdef"


@pytest.fixture(scope="module")
def scanner() -> Scanner:
    return Scanner()


def test_spans_of_the_original_come_back_with_the_new_text(scanner: Scanner) -> None:
    text, spans = scanner.redact(TEXT)
    assert text == "mail [EMAIL_ADDRESS] or [EMAIL_ADDRESS], call [PHONE_NUMBER]"
    assert [TEXT[span.start : span.end] for span in spans][0] == "jo@example.com"
    assert scanner.redact(TEXT, redact)[0] == "mail [REDACTED] or [REDACTED], call [REDACTED]"
    assert scanner.redact("nothing here") == ("nothing here", [])


def test_the_same_value_has_the_same_pseudonym_under_the_same_key_only(scanner: Scanner) -> None:
    text, _ = scanner.redact(TEXT, pseudonym(KEY))
    first, second = text.split()[1], text.split()[3].rstrip(",")
    assert first == second
    assert first.startswith("[EMAIL_ADDRESS_")
    assert scanner.redact("call 13800138000", pseudonym(KEY))[0].split()[-1] == text.split()[-1]
    assert scanner.redact(TEXT, pseudonym(KEY[::-1]))[0].split()[1] != first
    assert scanner.scan(text) == []
    with pytest.raises(ConfigurationError, match="16 bytes"):
        pseudonym(b"short")


def test_hashes_depend_on_the_salt(scanner: Scanner) -> None:
    plain, salted = scanner.redact(TEXT, hashed())[0], scanner.redact(TEXT, hashed(b"x"))[0]
    assert plain != salted
    assert "jo@" not in plain + salted


def test_a_dropped_record_is_an_empty_text_with_its_spans(scanner: Scanner) -> None:
    operator = by_type({"PHONE_NUMBER": drop}, replace)
    assert scanner.redact("mail jo@example.com", operator)[0] == "mail [EMAIL_ADDRESS]"
    text, spans = scanner.redact(TEXT, operator)
    assert (text, len(spans)) == ("", 3)


def test_operators_have_names(scanner: Scanner) -> None:
    for name in ("redact", "replace", "pseudonym", "hash", "drop"):
        assert "jo@example.com" not in scanner.redact(TEXT, named(name, KEY))[0]
