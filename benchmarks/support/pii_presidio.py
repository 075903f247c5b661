"""Presidio's pattern recognisers, each called directly: its default engine downloads a model."""

import contextlib
import logging
from collections.abc import Sequence
from typing import Any

NAMES = {
    "EmailRecognizer": "EMAIL_ADDRESS",
    "PhoneRecognizer": "PHONE_NUMBER",
    "CreditCardRecognizer": "CREDIT_CARD",
    "IbanRecognizer": "IBAN_CODE",
    "IpRecognizer": "IP_ADDRESS",
    "MacAddressRecognizer": "MAC_ADDRESS",
    "CryptoRecognizer": "CRYPTO",
    "UsSsnRecognizer": "US_SSN",
    "UsPassportRecognizer": "PASSPORT",
    "UkPassportRecognizer": "PASSPORT",
    "DePassportRecognizer": "PASSPORT",
    "UkVehicleRegistrationRecognizer": "LICENSE_PLATE",
    "DeKfzRecognizer": "LICENSE_PLATE",
}
"""Recogniser, and which of our types it finds. It knows no Chinese documents and no API keys."""
TYPES = tuple(dict.fromkeys(NAMES.values()))


class Presidio:
    """The recognisers, loaded once."""

    def __init__(self) -> None:
        from presidio_analyzer import predefined_recognizers

        # Without a network tldextract logs that it falls back on the list it was shipped with.
        logging.getLogger("tldextract").setLevel(logging.CRITICAL)
        self._recognisers: list[tuple[Any, str]] = []
        for name, type_ in NAMES.items():
            with contextlib.suppress(AttributeError):
                self._recognisers.append((getattr(predefined_recognizers, name)(), type_))

    def scan(self, text: str) -> list[tuple[str, int, int]]:
        """Return every finding, however unsure: its scores grow only with its engine's context."""
        found: list[tuple[str, int, int]] = []
        for recogniser, type_ in self._recognisers:
            results = recogniser.analyze(text, recogniser.supported_entities, None) or ()
            found += [(type_, result.start, result.end) for result in results]
        return found

    def scan_many(self, texts: Sequence[str]) -> list[list[tuple[str, int, int]]]:
        """Return each text's findings."""
        return [self.scan(text) for text in texts]
