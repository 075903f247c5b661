"""How a request that was drawn can end."""

from typing import Literal

Outcome = Literal["ok", "error", "client_error", "cancelled"]
OUTCOMES: tuple[Outcome, ...] = ("ok", "error", "client_error", "cancelled")
