"""Counts what clients do wrong, per address, over the last minute; in bounded memory."""

from collections import OrderedDict, deque

WINDOW_SECONDS = 60.0


class Strikes:
    """The times of each address's last strikes, for at most `addresses_max` addresses.

    Exact for the addresses it knows; when there are more, the one silent for longest is forgotten.
    """

    def __init__(self, strikes_max: int, addresses_max: int) -> None:
        self._strikes_max = strikes_max
        self._addresses_max = addresses_max
        self._times: OrderedDict[str, deque[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._times)

    def add(self, address: str, now: float) -> bool:
        """Count one; True when the address has more than `strikes_max` in the last minute."""
        times = self._times.get(address)
        if times is None:
            if len(self._times) >= self._addresses_max:
                self._times.popitem(last=False)
            times = self._times[address] = deque(maxlen=self._strikes_max + 1)
        else:
            self._times.move_to_end(address)
        times.append(now)
        return len(times) > self._strikes_max and now - times[0] < WINDOW_SECONDS

    def count(self, address: str, now: float) -> int:
        """How many an address has in the last minute, up to one more than a ban takes."""
        return sum(now - at < WINDOW_SECONDS for at in self._times.get(address, ()))

    def forget(self, address: str) -> None:
        """Begin anew with an address."""
        self._times.pop(address, None)
