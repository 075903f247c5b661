"""The release state machine: ledger, steps, conductor, keeper and the KServe client."""
