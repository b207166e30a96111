"""Compiled loops of `routing_fit`: the expectation steps, in which almost all of its time goes."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

_NEGLIGIBLE = 1e-3
"""Posterior probability below which a token is not counted."""


@njit(cache=True, fastmath=True)
def count_clusters(
    ids: NDArray[np.int64], log_shares: Singles, log_weight: Singles, counts: Floats, label: NDArray[np.int64]
) -> None:
    """Add tokens to `counts` [cluster, id] by posterior probability, and leave the likeliest cluster in `label`.

    Args:
        ids: [token, selection].
        log_shares: [id, cluster].
        log_weight: [cluster].
        counts: result, zero before.
        label: result [token].
    """
    clusters = log_shares.shape[1]
    score = np.empty(clusters, np.float32)
    for token in range(len(ids)):
        for c in range(clusters):
            score[c] = log_weight[c]
        for selection in range(ids.shape[1]):
            row = log_shares[ids[token, selection]]
            for c in range(clusters):
                score[c] += row[c]
        best, total = np.argmax(score), np.float32(0.0)
        label[token], highest = best, score[best]
        for c in range(clusters):
            score[c] = np.exp(score[c] - highest)
            total += score[c]
        for c in range(clusters):
            if score[c] > _NEGLIGIBLE * total:
                for selection in range(ids.shape[1]):
                    counts[c, ids[token, selection]] += score[c] / total


@njit(cache=True, fastmath=True)
def count_chains(
    expert: NDArray[np.uint8] | NDArray[np.uint16],
    shares: Singles,
    transitions: Singles,
    initial: Singles,
    initial_counts: Floats,
    transition_counts: Floats,
    share_counts: Floats,
) -> None:
    """Forward and backward pass over the layers of every token; adds posterior counts of states to the results.

    Args:
        expert: [token, layer, k].
        shares: [layer, expert, state].
        transitions: [layer - 1, state, state].
        initial: [state].
        initial_counts: result [state].
        transition_counts: result [layer - 1, state, state].
        share_counts: result [layer, state, expert].
    """
    layers, states = shares.shape[0], shares.shape[2]
    likelihood = np.empty((layers, states), np.float32)
    forward, backward = np.empty((layers, states), np.float32), np.empty((layers, states), np.float32)
    for token in range(len(expert)):
        chosen = expert[token]
        _likelihoods(chosen, shares, likelihood)
        _go_forward(initial, transitions, likelihood, forward)
        _go_backward(transitions, likelihood, forward, backward, transition_counts)
        for layer in range(layers):
            total = np.float32(0.0)
            for s in range(states):
                total += forward[layer, s] * backward[layer, s]
            for s in range(states):
                posterior = forward[layer, s] * backward[layer, s] / total
                if posterior > _NEGLIGIBLE:
                    if layer == 0:
                        initial_counts[s] += posterior
                    for rank in range(chosen.shape[1]):
                        share_counts[layer, s, chosen[layer, rank]] += posterior


@njit(cache=True, fastmath=True)
def _likelihoods(chosen: NDArray[np.uint8] | NDArray[np.uint16], shares: Singles, likelihood: Singles) -> None:
    """Fill `likelihood` [layer, state] of the experts `chosen` [layer, k], relative to the likeliest state's.

    Every share is taken in parts of an even one, 1 / experts, so that products of many stay within single precision;
    a power of two in its place rounds nothing.
    """
    layers, states = likelihood.shape
    even = np.float32(2.0 ** np.floor(np.log2(shares.shape[1])))
    for layer in range(layers):
        row = likelihood[layer]
        for s in range(states):
            row[s] = 1.0
        for rank in range(chosen.shape[1]):
            factor = shares[layer, chosen[layer, rank]]
            for s in range(states):
                row[s] *= factor[s] * even
        largest = row.max()
        for s in range(states):
            row[s] /= largest


@njit(cache=True, fastmath=True)
def _go_forward(initial: Singles, transitions: Singles, likelihood: Singles, forward: Singles) -> None:
    """Fill `forward` [layer, state]: probability of the state given this layer's experts and those before."""
    layers, states = likelihood.shape
    for layer in range(layers):
        row = forward[layer]
        for s in range(states):
            row[s] = initial[s] if layer == 0 else np.float32(0.0)
        if layer > 0:
            for s in range(states):
                weight, step = forward[layer - 1, s], transitions[layer - 1, s]
                if weight > np.float32(1e-4):
                    for following in range(states):
                        row[following] += weight * step[following]
        total = np.float32(0.0)
        for s in range(states):
            row[s] *= likelihood[layer, s]
            total += row[s]
        for s in range(states):
            row[s] /= total


@njit(cache=True, fastmath=True)
def _go_backward(
    transitions: Singles, likelihood: Singles, forward: Singles, backward: Singles, transition_counts: Floats
) -> None:
    """Fill `backward` [layer, state], likelihood of all later layers, up to a factor; count transitions on the way."""
    layers, states = likelihood.shape
    later = np.empty(states, np.float32)
    for s in range(states):
        backward[layers - 1, s] = 1.0
    for layer in range(layers - 1, 0, -1):
        for s in range(states):
            later[s] = backward[layer, s] * likelihood[layer, s]
        total, largest = np.float32(0.0), np.float32(0.0)
        for s in range(states):
            step, value = transitions[layer - 1, s], np.float32(0.0)
            for following in range(states):
                value += step[following] * later[following]
            backward[layer - 1, s] = value
            total += forward[layer - 1, s] * value
            largest = max(largest, value)
        for s in range(states):
            weight = forward[layer - 1, s] / total
            if weight * backward[layer - 1, s] > np.float32(1e-4):
                step = transitions[layer - 1, s]
                for following in range(states):
                    transition_counts[layer - 1, s, following] += weight * step[following] * later[following]
        for s in range(states):
            backward[layer - 1, s] /= largest
