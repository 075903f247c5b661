"""The `serin` command: one file per command group. The top floor: may import every room, lazily."""
