"""From what the serving loop wrote down to the numbers people ask for.

TTFT, ITL, TPOT and E2E are defined as in vLLM's serving benchmark: arrival to first token; gaps between tokens;
(E2E - TTFT) / (output tokens - 1), undefined for one output token and then left out; arrival to last token.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from moesim.simulator.growing import counted_percentiles

Column = NDArray[np.generic]
PERCENTILES = (50, 90, 99)


def request_latencies(
    arrival_s: NDArray[np.float64],
    first_token_s: NDArray[np.float64],
    last_token_s: NDArray[np.float64],
    output_tokens: NDArray[np.int64],
) -> dict[str, NDArray[np.float64]]:
    """`ttft_s`, `tpot_s` (NaN where undefined) and `e2e_s` of every request."""
    ttft_s = first_token_s - arrival_s
    e2e_s = last_token_s - arrival_s
    later = output_tokens - 1
    tpot_s = np.divide(e2e_s - ttft_s, later, out=np.full(len(later), np.nan), where=later > 0)
    return {"ttft_s": ttft_s, "tpot_s": tpot_s, "e2e_s": e2e_s}


def distribution(name: str, values: NDArray[np.float64]) -> dict[str, float | None]:
    """Mean and percentiles of the defined values, as `<name>_mean_s`, `<name>_p50_s`, ...; None without any."""
    defined = values[~np.isnan(values)]
    return counted_distribution(name, defined, np.ones(len(defined)))


def counted_distribution(
    name: str, values: NDArray[np.float64], counts: NDArray[np.float64]
) -> dict[str, float | None]:
    """As `distribution`, of values that occur `counts` times each."""
    keys = [f"{name}_mean_s", *(f"{name}_p{p}_s" for p in PERCENTILES)]
    if not len(values):
        return dict.fromkeys(keys)
    mean = float(np.average(values, weights=counts))
    return dict(zip(keys, [mean, *counted_percentiles(values, counts, PERCENTILES)], strict=True))


def expert_load_imbalance(tokens: NDArray[np.int64]) -> float | None:
    """Tokens of the most popular expert over the mean expert, averaged over layers: `tokens: int64[layer, expert]`."""
    mean = tokens.mean(axis=1) if tokens.size else np.zeros(0)
    if not mean.any():
        return None
    return float((tokens.max(axis=1) / mean).mean())


def sum_by(keys: NDArray[np.generic], values: Mapping[str, NDArray[np.float64]]) -> dict[str, Column]:
    """Sums of each of `values` over equal rows of `keys: [row, key]`; the distinct keys come first, sorted."""
    distinct, inverse = np.unique(keys, axis=0, return_inverse=True)
    sums = {name: np.bincount(inverse.ravel(), column, len(distinct)) for name, column in values.items()}
    return {"keys": distinct, **sums}
