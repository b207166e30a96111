"""Whose links are busy with a cache on its way from one rank to another."""

from dataclasses import dataclass, field

import simpy


@dataclass
class CacheLinks:
    """Links of the ranks: each sends one cache at a time, and receives one.

    Of the transfers that wait, the first in the order they were asked for starts that finds both of its links free.
    Nothing is held meanwhile: a rank whose receiver is busy sends to another one.
    """

    env: simpy.Environment
    sending: set[int] = field(default_factory=set, init=False)
    receiving: set[int] = field(default_factory=set, init=False)
    _waiting: list[tuple[int, int, simpy.Event]] = field(default_factory=list, init=False)

    def claim(self, source: int, destination: int) -> simpy.Event:
        """An event that happens when a cache may go from rank `source` to rank `destination`, which are busy then."""
        ready = self.env.event()
        self._waiting.append((source, destination, ready))
        self._start()
        return ready

    def free(self, source: int, destination: int) -> None:
        """The cache has arrived."""
        self.sending.remove(source)
        self.receiving.remove(destination)
        self._start()

    def _start(self) -> None:
        waiting, self._waiting = self._waiting, []
        for source, destination, ready in waiting:
            if source in self.sending or destination in self.receiving:
                self._waiting.append((source, destination, ready))
            else:
                self.sending.add(source)
                self.receiving.add(destination)
                ready.succeed()
