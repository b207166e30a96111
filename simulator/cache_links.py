"""Whose links are busy with a cache on its way from one rank to another."""

from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import NamedTuple

import simpy


class _Transfer(NamedTuple):
    """A transfer that waits; the numbers are in the order in which they were asked for."""

    number: int
    source: int
    destination: int
    ready: simpy.Event


_Queues = defaultdict[int, dict[int, deque[_Transfer]]]


@dataclass
class CacheLinks:
    """Links of the ranks: each sends one cache at a time, and receives one.

    Of the transfers that wait, the first in the order they were asked for starts that finds both of its links free.
    Nothing is held meanwhile: a rank whose receiver is busy sends to another one.

    So a transfer that waits has a busy link, and only those at a link that becomes free need a look: the first of each
    queue, of which there is one per pair of ranks.
    """

    env: simpy.Environment
    sending: set[int] = field(default_factory=set, init=False)
    receiving: set[int] = field(default_factory=set, init=False)
    _asked: int = field(default=0, init=False)
    _from: _Queues = field(default_factory=lambda: defaultdict(dict), init=False)  # by source, then by destination
    _to: _Queues = field(default_factory=lambda: defaultdict(dict), init=False)  # the same queues, by destination first

    def claim(self, source: int, destination: int) -> simpy.Event:
        """An event that happens when a cache may go from rank `source` to rank `destination`, which are busy then."""
        transfer = _Transfer(self._asked, source, destination, self.env.event())
        self._asked += 1
        if self._can_start(transfer):
            self._start(transfer)
        else:
            queue = self._from[source].setdefault(destination, deque())
            self._to[destination][source] = queue
            queue.append(transfer)
        return transfer.ready

    def free(self, source: int, destination: int) -> None:
        """The cache has arrived."""
        self.sending.remove(source)
        self.receiving.remove(destination)
        while heads := [
            queue[0]
            for queue in (*self._from[source].values(), *self._to[destination].values())
            if self._can_start(queue[0])
        ]:
            first = min(heads, key=lambda head: head.number)
            self._dequeue(first)
            self._start(first)

    def _can_start(self, transfer: _Transfer) -> bool:
        return transfer.source not in self.sending and transfer.destination not in self.receiving

    def _start(self, transfer: _Transfer) -> None:
        self.sending.add(transfer.source)
        self.receiving.add(transfer.destination)
        transfer.ready.succeed()

    def _dequeue(self, head: _Transfer) -> None:
        queue = self._from[head.source][head.destination]
        queue.popleft()
        if not queue:
            del self._from[head.source][head.destination], self._to[head.destination][head.source]
