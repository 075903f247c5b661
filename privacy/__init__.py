"""Sensitive data: found, checked and replaced before anything is stored. Knows no other room."""
