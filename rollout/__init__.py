"""Moves candidates into live traffic and back: ledger, steps, conductor, keeper; trains nothing."""
