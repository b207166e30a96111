"""Relative errors of predicted times, overall and by how long a kernel takes."""

from dataclasses import dataclass

import numpy as np

from moesim.hw_models.calibration.measured import Floats

BUCKETS_S = {"<30 us": (0.0, 30e-6), "30-100 us": (30e-6, 100e-6), ">100 us": (100e-6, np.inf)}
"""By measured time: launches weigh in the first, rates in the last."""
_LEAST_STATED = 0.001


def soft_l1(errors: Floats, scale: float) -> Floats:
    """Loss of each error: its square where it is far below `scale`, and growing with itself far above."""
    return 2 * scale**2 * (np.sqrt(1 + (errors / scale) ** 2) - 1)


@dataclass(frozen=True)
class ErrorSummary:
    """Of e = predicted / measured - 1.

    Attributes:
        rows: measurements.
        mean: mean of |e|.
        median: median of |e|.
        p90: 90th percentile of |e|.
        bias: median of e; > 0 where predictions are too slow.
    """

    rows: int
    mean: float
    median: float
    p90: float
    bias: float

    @classmethod
    def of(cls, predicted_s: Floats, measured_s: Floats) -> "ErrorSummary":
        """Errors of at least one row; both float64[row]."""
        error = predicted_s / measured_s - 1
        size = np.abs(error)
        return cls(
            len(error),
            float(size.mean()),
            float(np.median(size)),
            float(np.percentile(size, 90)),
            float(np.median(error)),
        )


def error_buckets(predicted_s: Floats, measured_s: Floats) -> dict[str, ErrorSummary]:
    """Errors of all rows (`all`), and of those in each of `BUCKETS_S` that has any."""
    summaries = {"all": ErrorSummary.of(predicted_s, measured_s)}
    for name, (low, high) in BUCKETS_S.items():
        rows = (measured_s >= low) & (measured_s < high)
        if rows.any():
            summaries[name] = ErrorSummary.of(predicted_s[rows], measured_s[rows])
    return summaries


def stated_error(error: float) -> float:
    """As calibrations state it: to a tenth of a per cent, and never 0."""
    return max(_LEAST_STATED, round(error, 3))
