"""Reads from the replicas of one shard, with failover and hedging."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from seqvault.errors import InvalidRequestError, SeqVaultError, ServerUnavailableError
from seqvault.service.client import SeqVaultClient

Answer = TypeVar("Answer")


class Replicas:
    """The replicas of one shard.

    A read goes to the replica that answered last. If that one fails in a way that is particular to
    it (down, overloaded, a damaged file), or has not answered after ``hedge_seconds``, the read is
    sent to the next one as well; the first answer is used.

    Args:
        makers: connects to each.
        pool: threads for the calls.
        hedge_seconds: that a replica has before the next one is asked, too.
    """

    def __init__(
        self,
        makers: Sequence[Callable[[], SeqVaultClient]],
        pool: ThreadPoolExecutor,
        hedge_seconds: float,
    ) -> None:
        self._makers, self._pool, self._hedge_seconds = makers, pool, hedge_seconds
        self._locks = [threading.Lock() for _ in makers]
        self._clients: list[SeqVaultClient | None] = [None] * len(makers)
        self._first = 0  # the one that answered last

    def __len__(self) -> int:
        return len(self._makers)

    def client(self, replica: int) -> SeqVaultClient:
        """The client of one replica, connected at first use."""
        with self._locks[replica]:
            known = self._clients[replica]
            if known is None:
                known = self._clients[replica] = self._makers[replica]()
            return known

    def read(self, call: Callable[[SeqVaultClient], Answer]) -> Answer:
        """The first answer of a replica.

        Raises:
            InvalidRequestError: and its kinds, which no replica would answer.
            SeqVaultError: what the last replica raised; none answered.
        """
        first, count = self._first, len(self._makers)
        if count == 1:
            return call(self.client(0))
        left = [*range(first, count), *range(first)]
        asked: dict[Future[Answer], int] = {}
        errors: list[SeqVaultError] = []
        while left or asked:
            if left:
                replica = left.pop(0)
                asked[self._pool.submit(self._call, call, replica)] = replica
            done, _ = wait(asked, self._hedge_seconds if left else None, FIRST_COMPLETED)
            for future in done:
                replica = asked.pop(future)
                try:
                    answer = future.result()
                except InvalidRequestError:
                    raise
                except SeqVaultError as error:
                    errors.append(error)
                    continue
                self._first = replica
                return answer
        # one that is there and says what is wrong tells more than one that is not
        told = [error for error in errors if not isinstance(error, ServerUnavailableError)]
        raise (told or errors)[-1]

    def _call(self, call: Callable[[SeqVaultClient], Answer], replica: int) -> Answer:
        return call(self.client(replica))

    def close(self) -> None:
        """Closes all connections; calls under way fail."""
        for client in self._clients:
            if client is not None:
                client.close()
