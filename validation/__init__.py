"""Gates and judges: evidence in, verdicts out; opens no socket."""
