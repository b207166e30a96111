"""Learning residuals beside fitted physics, judged on groups of shapes that neither step saw."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import ConfigError
from moesim.hw_models.calibration.attention_plan import AttentionPlan
from moesim.hw_models.calibration.errors import ErrorSummary, error_buckets
from moesim.hw_models.calibration.fit import STANDARD, FitResult, Settings
from moesim.hw_models.calibration.measured import Floats
from moesim.hw_models.calibration.plans import Plan
from moesim.hw_models.calibration.routed_tokens import BALANCED
from moesim.hw_models.calibration.splits import folds
from moesim.hw_models.gpu import GPU, GpuConfig
from moesim.hw_models.residual import Trees

_TREES, _LEAVES, _RATE = 60, 31, 0.2
_DRAWN_TREES, _DRAWN_RATE, _DRAWN_WEIGHT = 100, 0.1, 1 / 3
"""Where rows are random draws, as experts' under a power law, trees follow medians, and such rows weigh less."""
_LEAST_SHARE = 0.004
"""Of the rows in a leaf, at least."""
_RANGE_PERCENTILE = 0.5
"""Factors beyond this percentile of those seen, at either end, are cut off."""


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
    measured, unseen_s = plan.measured, np.empty(len(plan.measured))
    weight = _weights(plan)
    splits = folds(measured.group, len(result.fold_values), settings.seed)
    for (kept, left_out), values in zip(splits, result.fold_values, strict=True):
        features, physics_s, usable, anchors = _inputs(plan, plan.with_values(values))
        used = kept[usable[kept]]
        learner = _learn(features[used], measured.time_s[used] / physics_s[used], anchors, weight[used])
        unseen_s[left_out] = physics_s[left_out] * np.exp(learner.predict(features[left_out]))
    unseen = error_buckets(unseen_s, measured.time_s)
    features, physics_s, usable, anchors = _inputs(plan, processor.config)
    learner = _learn(features[usable], (measured.time_s / physics_s)[usable], anchors, weight[usable])
    low, high = np.percentile(learner.predict(features[usable]), [_RANGE_PERCENTILE, 100 - _RANGE_PERCENTILE])
    fingerprint = processor.fingerprint(plan.residual_name)
    trees = _trees(learner, (float(low), float(high)), fingerprint, unseen["all"].mean)
    return LearnedResidual(plan.residual_name, trees, unseen, unseen_s)


def _inputs(plan: Plan | AttentionPlan, config: GpuConfig) -> tuple[Floats, Floats, NDArray[np.bool_], Floats]:
    """Features, times by physics, which rows to learn from, and features of anchors."""
    physics = config.model_copy(update={"residual": None})
    processor, table = GPU(plan.as_measured(physics)), plan.measured.table
    features = processor.residual_features(table)
    anchors = features[:0] if plan.anchors is None else processor.residual_features(plan.anchors)
    return features, processor.price(table).time_s, plan.representative(physics), anchors


def _weights(plan: Plan | AttentionPlan) -> Floats:
    """float64[row]: what rows count; random draws count less."""
    distribution = plan.measured.labels.get("distribution", np.full(len(plan.measured), BALANCED))
    weight: Floats = np.where(distribution == BALANCED, 1.0, _DRAWN_WEIGHT)
    return weight


def _learn(features: Floats, ratio: Floats, anchors: Floats, weight: Floats) -> Any:
    """Trees for the logarithm of `ratio` of measured time and physics, which is 0 at the anchors."""
    try:
        from sklearn.ensemble import HistGradientBoostingRegressor
    except ImportError:
        raise ConfigError("--residual", "needs scikit-learn: pip install 'moesim[calibrate]'") from None
    drawn = bool((weight < 1.0).any())
    learner = HistGradientBoostingRegressor(
        loss="absolute_error" if drawn else "squared_error",
        max_iter=_DRAWN_TREES if drawn else _TREES,
        max_leaf_nodes=_LEAVES,
        learning_rate=_DRAWN_RATE if drawn else _RATE,
        min_samples_leaf=max(20, int(_LEAST_SHARE * len(ratio))),
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
