"""Synthetic routing traces: requests of given lengths whose tokens are drawn from a routing profile."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.workloads.routing_draw import TokenRouter
from moesim.workloads.routing_profile import RoutingProfile
from moesim.workloads.routing_trace import DECODE, PREFILL, RoutingTrace

Ints = NDArray[np.int64]

_CHUNK_IDS = 1 << 24
"""Expert ids drawn at a time: the 32 MiB of 16-bit ids."""


def synthesize_trace(
    profile: RoutingProfile,
    prompt_tokens: Ints,
    output_tokens: Ints,
    rng: np.random.Generator,
    *,
    prefill: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> RoutingTrace:
    """A trace of tokens drawn from `profile`; its `source` says so, and repeats the profile's.

    Args:
        profile: what to draw from.
        prompt_tokens: int64[request], at least 0, and 1 where `output_tokens` is 0.
        output_tokens: int64[request] decoded tokens, at least 0; 1 without prefill.
        rng: one draw is taken as the seed key.
        prefill: whether tokens of the prompts are in the trace.
        on_progress: called with tokens done and tokens in all.

    Raises:
        InputError: no requests, or one without tokens.
    """
    recorded = prompt_tokens * prefill + output_tokens
    if len(recorded) == 0 or min(prompt_tokens.min(), output_tokens.min()) < 0 or recorded.min() < 1:
        raise InputError("lengths", "every request must have at least one token, and there must be one request")
    request = np.repeat(np.arange(len(recorded)), recorded)
    ends = np.cumsum(recorded)
    step = np.arange(ends[-1]) - np.repeat(ends - recorded, recorded)
    position = step + (0 if prefill else np.repeat(prompt_tokens, recorded))
    phase = np.where(position < np.repeat(prompt_tokens, recorded), PREFILL, DECODE)
    return RoutingTrace(
        model=profile.model,
        experts=profile.experts,
        source=f"drawn from a profile: {profile.source}",
        names=tuple(f"r{index}" for index in range(len(recorded))),
        groups=("",) * len(recorded),
        first_decode_position=prompt_tokens.astype(np.int64),
        request=request.astype(np.int32),
        position=position.astype(np.int32),
        phase=phase.astype(np.uint8),
        expert=_draw(profile, request, position, rng, on_progress),
    )


def _draw(
    profile: RoutingProfile,
    request: Ints,
    position: Ints,
    rng: np.random.Generator,
    on_progress: Callable[[int, int], None] | None,
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """[token, layer, k] in the smallest type that holds the ids."""
    router = TokenRouter(profile, rng)
    tokens, chunk = len(request), max(1, _CHUNK_IDS // (profile.layers * profile.top_k))
    dtype = np.uint8 if profile.experts - 1 <= np.iinfo(np.uint8).max else np.uint16
    expert = np.empty((tokens, profile.layers, profile.top_k), dtype)
    for start in range(0, tokens, chunk):
        part = slice(start, start + chunk)
        expert[part] = router.experts(request[part], position[part])
        if on_progress:
            on_progress(min(start + chunk, tokens), tokens)
    return expert
