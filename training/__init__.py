"""From a snapshot to an adapter and a serving bundle."""
