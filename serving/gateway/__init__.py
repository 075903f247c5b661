"""One address for clients: draws the arm, balances inside it, counts per version."""
