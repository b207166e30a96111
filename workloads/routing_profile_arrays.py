"""States, reuse and domains of a routing profile as arrays of its npz file."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from moesim.workloads.routing_profile import RoutingProfile, limit_shares
from moesim.workloads.routing_states import Domains, Reuse, TokenStates

Arrays = dict[str, NDArray[Any]]

_FULL = np.iinfo(np.uint16).max
_STATES = ("initial", "transitions", "shares")
_NUMBERS = ("run_continues", "request_share", "habit_decay", "passage_share", "passage_tokens")


def optional_arrays(profile: RoutingProfile, dtype: DTypeLike) -> Arrays:
    """Arrays of what `profile` has beyond popularity and transitions.

    Args:
        profile: what to write.
        dtype: float64 keeps every bit; else numbers of domains take this type, and states 16 bits in fixed point.
    """
    arrays: Arrays = {}
    if profile.states is not None:
        states = profile.states
        exact = np.dtype(dtype) == np.float64
        for name in _STATES:
            array = getattr(states, name)
            arrays[f"states_{name}"] = array if exact else np.rint(array * _FULL).astype(np.uint16)
    if profile.reuse is not None:
        arrays["reuse_numbers"] = np.array([getattr(profile.reuse, name) for name in _NUMBERS], dtype=np.float64)
        arrays["reuse_run_sets"] = profile.reuse.run_sets
        arrays["reuse_habit_sets"] = profile.reuse.habit_sets
    if profile.domains is not None:
        arrays["domains_names"] = np.array(profile.domains.names)
        arrays["domains_weight"] = profile.domains.weight
        arrays["domains_popularity"] = profile.domains.popularity.astype(dtype)
    return arrays


def optional_fields(arrays: Mapping[str, NDArray[Any]], top_k: int, popularity: NDArray[np.float64]) -> dict[str, Any]:
    """Fields of a profile from the arrays that `optional_arrays` made.

    States that were rounded are scaled to the `popularity` again.

    Raises:
        KeyError: some arrays of a field are there and others are not.
        DataError: contents that break the rules of a field.
    """
    fields: dict[str, Any] = {}
    if "states_shares" in arrays:
        initial, transitions, shares = (arrays[f"states_{name}"] for name in _STATES)
        if shares.dtype == np.uint16:
            weights = shares.reshape(-1, shares.shape[-1]).astype(np.float64)
            shares = limit_shares(weights, top_k).reshape(shares.shape)
            rounded = TokenStates(_shares(initial), _shares(transitions), shares)
            fields["states"] = rounded.with_popularity(popularity, top_k)
        else:
            fields["states"] = TokenStates(initial, transitions, shares)
    if "reuse_numbers" in arrays:
        numbers = dict(zip(_NUMBERS, arrays["reuse_numbers"].tolist(), strict=True))
        numbers["passage_tokens"] = int(numbers["passage_tokens"])
        fields["reuse"] = Reuse(**numbers, run_sets=arrays["reuse_run_sets"], habit_sets=arrays["reuse_habit_sets"])
    if "domains_names" in arrays:
        names = tuple(str(name) for name in arrays["domains_names"])
        loads = arrays["domains_popularity"].astype(np.float64)
        loads /= loads.sum(axis=-1, keepdims=True)
        fields["domains"] = Domains(names, arrays["domains_weight"], loads)
    return fields


def _shares(counts: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(counts / np.maximum(counts.sum(axis=-1, keepdims=True, dtype=np.float64), 1.0))
