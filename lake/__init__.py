"""Raw records in, immutable snapshots out: Delta tables, quarantine and held-out rows."""
