"""A step: one forward pass of one replica, and the few sums over its sequences that operators depend on."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TOKENS, SAMPLES, DECODE_TOKENS, REBUILT_TOKENS, PREFILL_SEQUENCES, LONGEST_PREFILL, LONGEST_DECODE = range(7)
"""Features of every model: new tokens, sequences that end the step with a new output token, tokens of decode
sequences, prefill tokens with their cached context (whose keys and values latent attention rebuilds), prefill chunks,
and the longest sequence of either kind, its new tokens counted. The last two are maxima, all others are sums."""
FIRST_WINDOW = 7
DECODE_PAIRS, PREFILL_PAIRS, PREFILL_KEYS = range(3)
"""Features of each distinct span, from `FIRST_WINDOW` on, three per span: query-key pairs of decode sequences (as many
as keys read), query-key pairs of prefill chunks, keys that prefill chunks read (of a `Scan`: chunks)."""


@dataclass(frozen=True)
class Chunk:
    """A token sees the tokens of its own chunk, counted from the start of the sequence, up to itself."""

    tokens: int


@dataclass(frozen=True)
class Selected:
    """A token sees the `tokens` tokens that something selects among all up to itself."""

    tokens: int


@dataclass(frozen=True)
class Scan:
    """A recurrence: new tokens are taken in chunks of `tokens` from the first new one; None is one chunk for all."""

    tokens: int | None


Span = int | Chunk | Selected | Scan | None
"""Which tokens up to itself a token sees: the last so many (a sliding window), all of them (None), or as above."""

PHASES = ("prefill", "decode", "recompute")
"""Why a token runs: it belongs to the prompt, it was generated, or its cache was evicted by a preemption."""
PREFILL, DECODE, RECOMPUTE = range(3)


@dataclass(frozen=True)
class Step:
    """Sequences that run together, column by column.

    A sequence that adds one token to a non-empty context decodes; any other is a chunk of prefill.
    """

    request: NDArray[np.int64]  # [sequence] index of its request
    rank: NDArray[np.int64]  # [sequence] data-parallel rank
    new_tokens: NDArray[np.int64]  # [sequence] >= 1
    context: NDArray[np.int64]  # [sequence] tokens cached before the step
    samples: NDArray[np.bool_]  # [sequence] the step ends with a new output token
    prompt_tokens: NDArray[np.int64]  # [sequence] from this position on, tokens are outputs fed back
    seen_tokens: NDArray[np.int64]  # [sequence] tokens below this position ran before and were evicted since

    def __len__(self) -> int:
        return len(self.request)

    @cached_property
    def decodes(self) -> NDArray[np.bool_]:
        """Which sequences decode."""
        decodes: NDArray[np.bool_] = (self.new_tokens == 1) & (self.context > 0)
        return decodes

    @property
    def longest_batch(self) -> int:
        """Sequences of the rank that has most; each rank has a host of its own."""
        return int(np.bincount(self.rank).max(initial=0))

    def tokens(self) -> "StepTokens":
        """The step's new tokens one by one, sequence after sequence."""
        sequence = np.repeat(np.arange(len(self)), self.new_tokens)
        begin = np.cumsum(self.new_tokens) - self.new_tokens
        position = np.arange(len(sequence)) - begin[sequence] + self.context[sequence]
        phase = np.where(position >= self.prompt_tokens[sequence], DECODE, PREFILL)
        phase[position < self.seen_tokens[sequence]] = RECOMPUTE
        return StepTokens(self.request[sequence], position, self.rank[sequence], phase)


@dataclass(frozen=True)
class StepTokens:
    """New tokens of a step, column by column."""

    request: NDArray[np.int64]  # [token] index of its request
    position: NDArray[np.int64]  # [token] from 0, the first prompt token
    rank: NDArray[np.int64]  # [token] data-parallel rank
    phase: NDArray[np.int64]  # [token] index into PHASES


def feature(window: int, which: int) -> int:
    """Position of feature `which` of the attention window number `window`."""
    return FIRST_WINDOW + 3 * window + which


def step_features(step: Step, ranks: int, windows: Sequence[Span]) -> Floats:
    """The sums over sequences from which every operator outside the experts follows linearly, and two maxima.

    A rank without sequences runs a dummy step of one decoded token, as engines with data-parallel attention do to
    keep collectives in step.

    Args:
        step: the sequences, at least one.
        ranks: data-parallel ranks.
        windows: the distinct spans of the model.

    Returns:
        float64[rank, feature], exact integers.
    """
    decodes = step.decodes
    total = step.new_tokens + step.context
    prefilled = np.where(decodes, 0, total)
    columns: list[NDArray[Any]] = [step.new_tokens, step.samples, decodes, prefilled, ~decodes, prefilled, total]
    for window in windows:
        columns += _window_columns(step, decodes, window)
    sums = np.empty((ranks, len(columns)))
    for which, column in enumerate(columns):
        if which == LONGEST_PREFILL:
            sums[:, which] = _longest(step.rank, prefilled, ranks)
        elif which == LONGEST_DECODE:
            sums[:, which] = _longest(step.rank, total - prefilled, ranks)
        else:
            sums[:, which] = np.bincount(step.rank, column, minlength=ranks)
    idle = sums[:, TOKENS] == 0
    if idle.any():
        sums[idle] = _dummy_features(len(windows))
    return sums


def _longest(rank: NDArray[np.int64], tokens: NDArray[np.int64], ranks: int) -> NDArray[np.int64]:
    """Greatest of `tokens` on each rank, 0 where there is none."""
    longest = np.zeros(ranks, dtype=np.int64)
    if ranks == 1:
        longest[0] = tokens.max(initial=0)
        return longest
    np.maximum.at(longest, rank, tokens)
    return longest


def _dummy_features(windows: int) -> Floats:
    """One decoded token that sees only itself."""
    return np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0] + [1.0, 0.0, 0.0] * windows)


def _window_columns(step: Step, decodes: NDArray[np.bool_], window: Span) -> list[NDArray[np.int64]]:
    """Per sequence: pairs if it decodes, pairs and keys read if it prefills."""
    pairs, keys = attention_pairs(step.new_tokens, step.context, window)
    return [np.where(decodes, pairs, 0), np.where(decodes, 0, pairs), np.where(decodes, 0, keys)]


def attention_pairs(
    new_tokens: NDArray[np.int64], context: NDArray[np.int64], span: Span
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Query-key pairs and distinct keys of n new tokens on c cached ones, causal.

    Without a window the i-th new token sees c + i keys, together n c + n (n + 1) / 2. A window w caps each at w, and
    the keys that any of the n queries sees number min(c + n, n + w - 1). Selected keys are capped alike, but stand
    anywhere: no more than c + n, and no more than the pairs, are distinct. A scan pairs new tokens within its chunks.

    Returns:
        (pairs, keys): int64[sequence] each; for a scan (pairs, chunks).
    """
    n, c = new_tokens, context
    if isinstance(span, Scan):
        size = span.tokens or int(n.max(initial=1))
        return _pairs_in_chunks(n, size), -(-n // size)
    if isinstance(span, Chunk):
        return _pairs_in_chunks(c + n, span.tokens) - _pairs_in_chunks(c, span.tokens), n + c % span.tokens
    if span is None:
        return _full_pairs(n, c), n + c
    if isinstance(span, Selected):
        pairs = _capped_pairs(n, c, span.tokens)
        return pairs, np.minimum(n + c, pairs)
    return _capped_pairs(n, c, span), np.minimum(n + c, n + span - 1)


def _full_pairs(n: NDArray[np.int64], c: NDArray[np.int64]) -> NDArray[np.int64]:
    pairs: NDArray[np.int64] = n * c + n * (n + 1) // 2
    return pairs


def _capped_pairs(n: NDArray[np.int64], c: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Pairs where no query sees more than `most` keys."""
    capped = np.minimum(n, np.maximum(0, n + c - most))  # the last `capped` queries see `most` keys, not more
    excess: NDArray[np.int64] = capped * (n + c - most) - capped * (capped - 1) // 2
    return _full_pairs(n, c) - excess


def _pairs_in_chunks(tokens: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Pairs of the first `tokens` tokens of a sequence when each sees its own chunk only."""
    whole, rest = np.divmod(tokens, size)
    pairs: NDArray[np.int64] = whole * (size * (size + 1) // 2) + rest * (rest + 1) // 2
    return pairs
