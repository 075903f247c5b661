"""Detectors of postal addresses by their form; a model finds more (token_labels.py)."""

from privacy.detectors import Detector

DETECTORS: tuple[Detector, ...] = ()
