from itertools import pairwise

import numpy as np
import pytest
import simpy

from moesim.simulator.cache_links import CacheLinks


class Scan:
    """The rule of `CacheLinks` word for word: every time, all that wait are looked through in order."""

    def __init__(self, env):
        self.env, self.sending, self.receiving, self.waiting = env, set(), set(), []

    def claim(self, source, destination):
        self.waiting.append((source, destination, self.env.event()))
        ready = self.waiting[-1][-1]
        self.start()
        return ready

    def free(self, source, destination):
        self.sending.remove(source)
        self.receiving.remove(destination)
        self.start()

    def start(self):
        waiting, self.waiting = self.waiting, []
        for source, destination, ready in waiting:
            if source in self.sending or destination in self.receiving:
                self.waiting.append((source, destination, ready))
            else:
                self.sending.add(source)
                self.receiving.add(destination)
                ready.succeed()


def moved(transfers, kind=CacheLinks):
    """Start and end of each transfer (source, destination, seconds), all asked for at once."""
    env = simpy.Environment()
    links, times = kind(env), {}

    def move(number, source, destination, duration_s):
        yield links.claim(source, destination)
        start_s = env.now
        yield env.timeout(duration_s)
        times[number] = (start_s, env.now)
        links.free(source, destination)

    for number, transfer in enumerate(transfers):
        env.process(move(number, *transfer))
    env.run()
    assert not links.sending
    assert not links.receiving
    return [times[number] for number in range(len(transfers))]


def test_a_busy_receiver_does_not_hold_up_what_goes_elsewhere():
    times = moved([(0, 2, 10.0), (1, 2, 1.0), (1, 3, 1.0)])
    assert times == [(0.0, 10.0), (10.0, 11.0), (0.0, 1.0)]


def test_one_pair_moves_in_order():
    assert moved([(0, 1, 2.0), (0, 1, 3.0), (0, 1, 1.0)]) == [(0.0, 2.0), (2.0, 5.0), (5.0, 6.0)]


def test_a_rank_sends_and_receives_at_the_same_time():
    assert moved([(0, 1, 2.0), (1, 0, 2.0)]) == [(0.0, 2.0), (0.0, 2.0)]


@pytest.mark.parametrize("seed", range(5))
def test_links_carry_one_cache_at_a_time_and_none_waits_for_free_ones(seed):
    rng = np.random.default_rng(seed)
    pairs = [tuple(rng.integers(0, 4, 2).tolist()) for _ in range(30)]
    durations = rng.integers(1, 5, 30).astype(float)  # of which many end together
    times = moved([(*pair, duration) for pair, duration in zip(pairs, durations.tolist(), strict=True)])
    for end in (0, 1):
        for rank in range(4):
            spans = sorted(span for pair, span in zip(pairs, times, strict=True) if pair[end] == rank)
            assert all(before[1] <= after[0] for before, after in pairwise(spans))
    assert times == moved([(*pair, duration) for pair, duration in zip(pairs, durations.tolist(), strict=True)], Scan)
    ends = {span[1] for span in times}
    assert all(start_s == 0.0 or start_s in ends for start_s, _ in times)
