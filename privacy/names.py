"""Detectors of people's names by dictionary and context; a model finds more (token_labels.py)."""

from privacy.detectors import Detector

DETECTORS: tuple[Detector, ...] = ()
