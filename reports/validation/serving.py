"""Errors of replayed deployments: by framework, model and GPU, every measurement or the summary of each group."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.reports.validation.serving_deployment import OPS, Deployment
from moesim.reports.validation.serving_replay import Outcome

UNANSWERED = 1.0
"""Error of a measurement that cannot be replayed."""


@dataclass(frozen=True)
class Comparison:
    """One number of one measurement. `predicted_s` is None where there is no answer."""

    id: str
    framework: str
    model: str
    gpu: str
    op: str
    statistic: str
    measured_s: float
    predicted_s: float | None
    broken: str | None = None
    unanswered: str | None = None

    @property
    def error(self) -> float:
        """Predicted over measured, less one; 100 % without an answer."""
        return UNANSWERED if self.predicted_s is None else self.predicted_s / self.measured_s - 1.0


@dataclass(frozen=True)
class GroupError:
    """Errors of the measurements of a group; errors as fractions, `bias` with its sign, of answered rows only."""

    gpu: str
    op: str
    framework: str
    model: str
    rows: int
    unanswered: int
    mean_abs_error: float
    median_abs_error: float
    p90_abs_error: float
    bias: float | None


Key = Callable[[Comparison], tuple[str, str, str]]


def compare(deployments: Sequence[Deployment], outcomes: Sequence[Outcome]) -> list[Comparison]:
    """Every measured statistic against the prediction."""
    compared = []
    for deployment, outcome in zip(deployments, outcomes, strict=True):
        for op in OPS:
            for statistic, measured_s in deployment.measured_s.get(op, {}).items():
                predicted_s = (outcome.predicted_s or {}).get(op, {}).get(statistic)
                compared.append(
                    Comparison(
                        id=deployment.id,
                        framework=deployment.framework,
                        model=deployment.model,
                        gpu=deployment.gpu,
                        op=op,
                        statistic=statistic,
                        measured_s=measured_s,
                        predicted_s=predicted_s,
                        broken=deployment.broken,
                        unanswered=outcome.refusal,
                    )
                )
    return compared


def summarise(compared: Sequence[Comparison], *, broken: bool = False) -> list[GroupError]:
    """A row per framework, model, GPU and op, then rows over all.

    Args:
        compared: measurements.
        broken: count those too that are not to be believed.
    """
    kept = [one for one in compared if broken or one.broken is None]
    groups: dict[tuple[str, str, str, str], list[Comparison]] = {}
    for one in kept:
        groups.setdefault((one.framework, one.model, one.gpu, one.op), []).append(one)
    ordered = sorted(groups.items(), key=lambda group: (*group[0][:3], OPS.index(group[0][3])))
    rows = [_group_error(key, members) for key, members in ordered]
    for op in OPS:
        members = [one for one in kept if one.op == op]
        if members and len({key[:3] for key in groups}) > 1:
            rows.append(_group_error(("all", "all", "all", op), members))
    return rows


def _group_error(key: tuple[str, str, str, str], members: Sequence[Comparison]) -> GroupError:
    framework, model, gpu, op = key
    errors: NDArray[np.float64] = np.array([one.error for one in members])
    answered = errors[[one.predicted_s is not None for one in members]]
    size = np.abs(errors)
    return GroupError(
        gpu=gpu,
        op=op,
        framework=framework,
        model=model,
        rows=len(members),
        unanswered=len(members) - len(answered),
        mean_abs_error=float(size.mean()),
        median_abs_error=float(np.median(size)),
        p90_abs_error=float(np.percentile(size, 90)),
        bias=float(answered.mean()) if len(answered) else None,
    )


def rows_as_dicts(rows: Sequence[GroupError | Comparison]) -> list[dict[str, object]]:
    """Plain data, for JSON."""
    return [asdict(row) | ({"error": row.error} if isinstance(row, Comparison) else {}) for row in rows]


def as_csv(rows: Sequence[GroupError | Comparison]) -> str:
    """A table with a header."""
    dicts = rows_as_dicts(rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dicts[0]) if dicts else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(dicts)
    return text.getvalue()


def as_markdown(rows: Sequence[GroupError]) -> str:
    """A table for people, TTFT, TPOT and E2E of a group on one line each."""
    head = "| framework | model | GPU | op | rows | unanswered | median | mean | P90 | bias |"
    lines = [head, "|---|---|---|---|--:|--:|--:|--:|--:|--:|"]
    lines += [
        f"| {row.framework} | {row.model} | {row.gpu} | {row.op.upper()} | {row.rows} | {row.unanswered} | "
        + " | ".join(map(percent, (row.median_abs_error, row.mean_abs_error, row.p90_abs_error)))
        + f" | {signed_percent(row.bias)} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def percent(value: float) -> str:
    """`0.0423` as `4.2 %`."""
    return f"{value * 100:.1f} %"


def signed_percent(value: float | None) -> str:
    """`-0.0423` as `-4.2 %`."""
    return "-" if value is None else f"{value * 100:+.1f} %"


def without_answer(compared: Iterable[Comparison]) -> Mapping[str, Sequence[str]]:
    """Measurements that cannot be replayed: their ids by the reason."""
    found: dict[str, dict[str, None]] = {}
    for one in compared:
        if one.predicted_s is None and one.unanswered is not None:
            found.setdefault(one.unanswered, {})[one.id] = None
    return {reason: tuple(ids) for reason, ids in found.items()}


def named_broken(deployments: Sequence[Deployment]) -> Mapping[str, str]:
    """Why each measurement that is left out is not believed, by id."""
    return {deployment.id: deployment.broken for deployment in deployments if deployment.broken}
