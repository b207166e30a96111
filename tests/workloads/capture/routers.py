"""Routers written by hand, a token at a time, from the papers: input of the router -> ids and weights of experts.

Ranks are in descending order of weight, as in a trace.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Chosen = list[tuple[float, int]]  # weight and expert


def route(family: str, hidden: NDArray[np.float64], weights: dict[str, NDArray[np.float64]], config: Any) -> Chosen:
    logits = weights["weight"] @ hidden + weights.get("bias", 0.0)
    chosen = ROUTERS[family](logits, weights, config)
    return sorted(chosen, key=lambda pair: -pair[0])


def softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(values - values.max())
    return np.asarray(powers / powers.sum())


def best(scores: NDArray[np.float64], count: int) -> list[int]:
    return [int(index) for index in np.argsort(-scores)[:count]]


def normalised(pairs: Chosen) -> Chosen:
    total = sum(weight for weight, _ in pairs)
    return [(weight / total, expert) for weight, expert in pairs]


def mixtral(logits, _weights, config):
    """Arithmetic of arXiv:2401.04088, section 2.1: softmax over the top-k logits."""
    ids = best(logits, config.num_experts_per_tok)
    return list(zip(softmax(logits[ids]), ids, strict=True))


def softmax_then_top_k(logits, _weights, config):
    """OLMoE (arXiv:2409.02060) and Qwen: softmax over all experts, scaled to sum 1 where the config says so."""
    shares = softmax(logits)
    pairs = [(shares[index], index) for index in best(shares, config.num_experts_per_tok)]
    return normalised(pairs) if config.norm_topk_prob else pairs


def in_best_groups(scores, group_scores, config):
    groups = best(group_scores, config.topk_group)
    allowed = np.isin(np.arange(len(scores)) // (len(scores) // config.n_group), groups)
    return best(np.where(allowed, scores, -np.inf), config.num_experts_per_tok)


def deepseek_v2(logits, _weights, config):
    """Device-limited routing of arXiv:2405.04434, section 2.2.2: groups by their best expert."""
    shares = softmax(logits)
    ids = in_best_groups(shares, shares.reshape(config.n_group, -1).max(axis=1), config)
    return [(shares[index] * config.routed_scaling_factor, index) for index in ids]


def deepseek_v3(logits, weights, config):
    """arXiv:2412.19437, section 2.1.2: sigmoid scores, a bias that only chooses, groups by their two best experts."""
    scores = 1 / (1 + np.exp(-logits))
    biased = scores + weights["e_score_correction_bias"]
    by_group = np.sort(biased.reshape(config.n_group, -1), axis=1)[:, -2:].sum(axis=1)
    pairs = [(scores[index], index) for index in in_best_groups(biased, by_group, config)]
    return [(weight * config.routed_scaling_factor, index) for weight, index in normalised(pairs)]


def phimoe(logits, _weights, config):
    """SparseMixer (arXiv:2409.12136) in inference: each of two experts by a softmax over what is close to the best."""
    pairs = []
    left = np.ones(len(logits), bool)
    for _ in range(2):
        top = logits[left].max()
        expert = int(np.flatnonzero(left & (logits == top))[0])
        close = left & ((top - logits) / np.maximum(np.abs(logits), top) <= 2 * config.router_jitter_noise)
        pairs.append((float(np.exp(logits[expert]) / np.exp(logits[close]).sum()), expert))
        left[expert] = False
    return pairs


ROUTERS = {
    "mixtral": mixtral,
    "olmoe": softmax_then_top_k,
    "qwen2_moe": softmax_then_top_k,
    "qwen3_moe": softmax_then_top_k,
    "deepseek_v2": deepseek_v2,
    "deepseek_v3": deepseek_v3,
    "gpt_oss": mixtral,  # gpt-oss model card (arXiv:2508.10925), section 2.2, with a bias in the logits
    "phimoe": phimoe,
}
