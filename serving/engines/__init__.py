"""Inference engines behind one small interface, one backend per file."""
