"""Learning residuals beside fitted physics, judged on groups of shapes that neither step saw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moesim.errors import ConfigError
from moesim.hw_models.calibration.attention_plan import AttentionPlan
from moesim.hw_models.calibration.errors import ErrorSummary, error_buckets
from moesim.hw_models.calibration.fit import STANDARD, FitResult, Settings
from moesim.hw_models.calibration.measured import Floats
from moesim.hw_models.calibration.plans import Plan
from moesim.hw_models.calibration.routed_tokens import row_weights
from moesim.hw_models.calibration.splits import folds
from moesim.hw_models.gpu import GPU, GpuConfig
from moesim.hw_models.residual import Trees

_FEWEST_ROWS = 20
"""In a leaf."""
_LEAST_ROWS = 200
"""To learn anything from."""
_RANGE_PERCENTILE = 0.5
"""Factors beyond this percentile of those seen, at either end, are cut off."""


@dataclass(frozen=True)
class Learner:
    """How trees are grown.

    Attributes:
        trees, leaves, rate: their number, the leaves of each, and the share of its correction that is applied.
        least_share: of all rows, in a leaf at least.
        loss: of the logarithm of the factor; the absolute error leaves times alone that are long by chance.
    """

    trees: int = 60
    leaves: int = 31
    rate: float = 0.2
    least_share: float = 0.004
    loss: Literal["squared_error", "absolute_error"] = "squared_error"


_STANDARD = (Learner(),)
_DRAWN = (
    Learner(trees=100, rate=0.1, loss="absolute_error"),
    Learner(trees=100, rate=0.1, least_share=0.02, loss="absolute_error"),
)
"""Of expert FFNs, which were measured on ten models or so, and of which many rows are random draws."""
_SINGLE = (Learner(100, 63, 0.2, 0.0), Learner(100, 63, 0.2, 0.0, "absolute_error"))
"""Of single products, which were measured on hundreds of shapes. The better one on unseen shapes is taken."""


@dataclass(frozen=True)
class LearnedResidual:
    """A residual of the parameters that a device states.

    Attributes:
        name: of the model in a file of residuals.
        trees: the model, learned on all groups.
        unseen: errors with it, by bucket of time; each row predicted by physics and trees that did not see its group.
        unseen_s: float64[row], those predictions.
    """

    name: str
    trees: Trees
    unseen: dict[str, ErrorSummary]
    unseen_s: Floats


def learn_residual(
    plan: Plan | AttentionPlan, result: FitResult, processor: GPU, settings: Settings = STANDARD
) -> LearnedResidual:
    """Learn the residual of one fit.

    Args:
        plan: the fit.
        result: of the fit, whose folds are used again.
        processor: the device as its YAML states it, with all fits; its own residual is left aside.
        settings: of the fit; only its folds and seed matter.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    measured = plan.measured
    weight, learners = row_weights(measured), _learners(plan)
    tried = [_unseen(plan, result, settings, weight, how) for how in learners]
    errors = [float(np.abs(seconds / measured.time_s - 1).mean()) for seconds in tried]
    best = int(np.argmin(errors))
    unseen_s = tried[best]
    unseen = error_buckets(unseen_s, measured.time_s)
    features, physics_s, usable, anchors = _inputs(plan, processor.config)
    learner = _learn(features[usable], (measured.time_s / physics_s)[usable], anchors, weight[usable], learners[best])
    low, high = np.percentile(learner.predict(features[usable]), [_RANGE_PERCENTILE, 100 - _RANGE_PERCENTILE])
    fingerprint = processor.fingerprint(plan.residual_name)
    trees = _trees(learner, (float(low), float(high)), fingerprint, unseen["all"].mean)
    return LearnedResidual(plan.residual_name, trees, unseen, unseen_s)


def can_learn(plan: Plan | AttentionPlan, processor: GPU) -> bool:
    """Whether enough rows show kernels rather than the host of a benchmark."""
    physics = processor.config.model_copy(update={"residual": None})
    return bool((~plan.hidden(physics)).sum() >= _LEAST_ROWS)


def check_learner() -> None:
    """That residuals can be learned here, before any work is done.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    if find_spec("sklearn") is None:
        raise ConfigError("--residual", "needs scikit-learn: pip install 'moesim[calibrate]'")


def _unseen(plan: Plan | AttentionPlan, result: FitResult, settings: Settings, weight: Floats, how: Learner) -> Floats:
    """float64[row]: every row predicted by physics and trees that did not see its group."""
    measured, unseen_s = plan.measured, np.empty(len(plan.measured))
    splits = folds(measured.group, len(result.fold_values), settings.seed)
    for (kept, left_out), values in zip(splits, result.fold_values, strict=True):
        config = plan.with_values(values)
        features, physics_s, usable, anchors = _inputs(plan, config)
        used = kept[usable[kept]]
        learner = _learn(features[used], measured.time_s[used] / physics_s[used], anchors, weight[used], how)
        factor = np.where(plan.hidden(config)[left_out], 1.0, np.exp(learner.predict(features[left_out])))
        unseen_s[left_out] = physics_s[left_out] * factor
    return unseen_s


def _inputs(plan: Plan | AttentionPlan, config: GpuConfig) -> tuple[Floats, Floats, NDArray[np.bool_], Floats]:
    """Features, times by physics, which rows to learn from, and features of anchors."""
    physics = config.model_copy(update={"residual": None})
    processor, table = GPU(plan.as_measured(physics)), plan.measured.table
    features = processor.residual_features(table)
    unlike = plan.anchors(physics)
    anchors = features[:0] if unlike is None else GPU(physics).residual_features(unlike)
    usable = plan.representative(physics) & ~plan.hidden(physics)
    return features, processor.price(table).time_s, usable, anchors


def _learners(plan: Plan | AttentionPlan) -> Sequence[Learner]:
    """What to try: trees that follow medians where rows are random draws."""
    if plan.residual_name.startswith("gemm."):
        return _SINGLE
    return _DRAWN if (row_weights(plan.measured) < 1.0).any() else _STANDARD


def _learn(features: Floats, ratio: Floats, anchors: Floats, weight: Floats, how: Learner) -> Any:
    """Trees for the logarithm of `ratio` of measured time and physics, which is 0 at the anchors."""
    check_learner()
    from sklearn.ensemble import HistGradientBoostingRegressor

    learner = HistGradientBoostingRegressor(
        loss=how.loss,
        max_iter=how.trees,
        max_leaf_nodes=how.leaves,
        learning_rate=how.rate,
        min_samples_leaf=max(_FEWEST_ROWS, int(how.least_share * len(ratio))),
        l2_regularization=1.0,
        early_stopping=False,
        random_state=0,
    )
    target = np.concatenate([np.log(ratio), np.zeros(len(anchors))])
    weights = np.concatenate([weight, np.ones(len(anchors))])
    return learner.fit(np.vstack([features, anchors]), target, sample_weight=weights)


def _trees(learner: Any, limits: tuple[float, float], fingerprint: str, error: float) -> Trees:
    """The learner as plain arrays; children of a node stand side by side."""
    feature: list[int] = []
    value: list[float] = []
    left: list[int] = []
    roots = []
    base = float(np.ravel(learner._baseline_prediction)[0])  # noqa: SLF001, the only way to the trees
    for (predictor,) in learner._predictors:  # noqa: SLF001
        roots.append(len(feature))
        _lay_out(predictor.nodes, base, feature, value, left)
        base = 0.0
    return Trees(
        np.array(feature, np.int8),
        np.array(value, np.float32),
        np.array(left, np.int32),
        np.array(roots, np.int32),
        *limits,
        fingerprint,
        error,
    )


def _lay_out(nodes: Mapping[str, Any], base: float, feature: list[int], value: list[float], left: list[int]) -> None:
    """Append one tree, breadth first."""
    place = len(feature)
    queue = [0]
    while queue:
        following: list[int] = []
        places = place + len(queue)
        for index in queue:
            node: Any = nodes[index]  # type: ignore[index]
            if node["is_leaf"]:
                feature.append(-1)
                value.append(float(node["value"]) + base)
                left.append(0)
            else:
                feature.append(int(node["feature_idx"]))
                value.append(float(node["num_threshold"]))
                left.append(places + len(following))
                following += [int(node["left"]), int(node["right"])]
        place, queue = places, following
