"""Metrics, traces, audit and the load generator."""
