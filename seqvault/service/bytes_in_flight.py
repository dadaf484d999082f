"""Limits the memory of requests and replies in progress."""

import threading

from seqvault.errors import LimitError


class BytesInFlight:
    """Counts the bytes of requests and replies in progress, and refuses calls beyond a limit.

    Args:
        most: bytes; a call that would exceed them is refused. When none are held, a call of any
            size is accepted.

    Example:
        >>> flight = BytesInFlight(most=100)
        >>> one = flight.hold(80)
        >>> one.add(50)
        >>> flight.held
        130
        >>> one.end()
        >>> flight.held
        0
    """

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self._lock = threading.Lock()

    def hold(self, size: int) -> "Held":
        """Admits a request of ``size`` bytes.

        Raises:
            LimitError: the limit would be exceeded.
        """
        with self._lock:
            if self.held and self.held + size > self.most:
                raise LimitError(
                    f"calls under way hold {self.held} bytes and this one has {size}; the limit of "
                    f"the server is {self.most}. Try again later, or send less at a time."
                )
            self.held += size
        return Held(self, size)

    def _make_room(self, size: int) -> None:
        with self._lock:
            if self.held + size > self.most:
                raise LimitError(
                    f"the answer can take {size} bytes and calls under way hold {self.held}; the "
                    f"limit of the server is {self.most}. Ask for fewer users, events or fields at "
                    "a time, or try again later."
                )
            self.held += size

    def _change(self, size: int) -> None:
        with self._lock:
            self.held += size


class Held:
    """The bytes of one call."""

    def __init__(self, flight: BytesInFlight, size: int) -> None:
        self._flight, self._size, self._ended = flight, size, False
        self._room = 0  # made for an answer that is being built
        self._lock = threading.Lock()

    def add(self, size: int) -> None:
        """Adds the bytes of the reply, unless the call has ended."""
        with self._lock:
            if not self._ended:
                self._size += size
                self._flight._change(size)

    def make_room(self, size: int) -> None:
        """Reserves an upper bound of the bytes of an answer before it is built.

        Raises:
            LimitError: it would exceed the limit, together with other calls or alone.
        """
        with self._lock:
            if not self._ended:
                self._flight._make_room(size)
                self._size += size
                self._room += size

    def built(self, size: int) -> None:
        """Replaces the reservation by the actual size of the answer."""
        with self._lock:
            if not self._ended:
                self._flight._change(size - self._room)
                self._size += size - self._room
                self._room = 0

    def end(self) -> None:
        """Releases the bytes; calling it again does nothing."""
        with self._lock:
            if not self._ended:
                self._ended = True
                self._flight._change(-self._size)
