"""Model versions, their lineage and their digests, on MLflow."""
