"""Value types, errors, settings and digests that every room may import; knows no other room."""
