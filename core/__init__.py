"""Value types, errors, settings and digests that every other room may import; knows no other room."""
