"""The story: each Prefect flow readable aloud; no maths, no exception handling."""
