"""Learned corrections of fitted prices: small boosted trees in plain arrays, an optional second step after physics.

A model belongs to one form of work and one weight format, or to one attention kernel, and to the very parameters it was
trained beside: with any other value of these, as hypothetical devices have them, it does not apply, and physics is all
there is. Models never apply outside the calibrated range, and never by more than they saw.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import DataError
from moesim.files import whole_file
from moesim.workloads.npz_files import npz_members

FOLDER = Path(__file__).parent.parent / "configs" / "devices" / "residuals"
TREES_TOGETHER = 4
"""Trees that the kernel walks at a time."""
_ARRAYS = {"feature": np.int8, "value": np.float32, "left": np.int32, "roots": np.int32}


@dataclass(frozen=True)
class Trees:
    """One model: the logarithm of the factor is the sum of the leaves that a row falls into.

    Attributes:
        feature: int8[node], index of a feature; -1 at leaves.
        value: float32[node], rows at or below it go left; at leaves, what is added.
        left: int32[node], the left child; the right one is the next node.
        roots: int32[tree].
        low, high: least and greatest logarithm of the factor.
        fingerprint: of the parameters that it was trained beside (see `fingerprint`).
        error: mean of |predicted / measured - 1| with it, on groups of shapes that neither step saw.
    """

    feature: NDArray[np.int8]
    value: NDArray[np.float32]
    left: NDArray[np.int32]
    roots: NDArray[np.int32]
    low: float
    high: float
    fingerprint: str
    error: float


def fingerprint(parameters: NDArray[np.float64], *named: str) -> str:
    """Short name of some values, and of others with their names; the same to five digits means the same."""
    text = ",".join([*(f"{value:.5g}" for value in parameters), *named])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save_residual(path: Path, models: Mapping[str, Trees]) -> None:
    """Write models by name, such as `gemm.bf16`, atomically."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, model in models.items():
        arrays |= {f"{name}.{key}": getattr(model, key) for key in _ARRAYS}
        arrays[f"{name}.range"] = np.array([model.low, model.high, model.error])
        arrays[f"{name}.fingerprint"] = np.array(model.fingerprint)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        np.savez_compressed(part, allow_pickle=False, **arrays)


def load_residual(path: Path) -> dict[str, Trees]:
    """Models by name.

    Raises:
        DataError: the file is missing or holds something else.
    """
    arrays = npz_members(path)
    names = dict.fromkeys(key.rsplit(".", 1)[0] for key in arrays)
    try:
        return {name: _model(arrays, name) for name in names}
    except KeyError as error:
        raise DataError(str(path), f"must be a file of residuals (it lacks {error.args[0]})") from None
    except (TypeError, ValueError) as error:
        raise DataError(str(path), f"must be a file of residuals ({error})") from None


def _model(arrays: Mapping[str, NDArray[Any]], name: str) -> Trees:
    held = {key: arrays[f"{name}.{key}"].astype(kind) for key, kind in _ARRAYS.items()}
    low, high, error = (float(value) for value in arrays[f"{name}.range"])
    return Trees(**held, low=low, high=high, fingerprint=str(arrays[f"{name}.fingerprint"]), error=error)


def joined(models: Sequence[tuple[int, int, Trees]], planes: int, columns: int) -> tuple[NDArray[Any], ...]:
    """Arrays for the kernel: feature, threshold, left, value, roots, and float64[plane, column, 4].

    A model's place is its plane and its column: a weight format, or one of the attention kernels. Node 0 is a tree that
    adds nothing; it fills the trees of a model up to a multiple of `TREES_TOGETHER`.

    The last holds first and end tree, and the range of the logarithm of the factor; no trees where there is no model.
    """
    table = np.zeros((planes, columns, 4))
    feature, value, left = [np.full(1, -1, np.int8)], [np.zeros(1, np.float32)], [np.zeros(1, np.int32)]
    roots = [np.zeros(0, np.int32)]
    nodes, trees = 1, 0
    for plane, column, model in models:
        feature.append(model.feature)
        value.append(model.value)
        left.append((model.left + nodes).astype(np.int32))
        roots.append(np.pad((model.roots + nodes).astype(np.int32), (0, -len(model.roots) % TREES_TOGETHER)))
        table[plane, column] = trees, trees + len(roots[-1]), model.low, model.high
        nodes, trees = nodes + len(model.feature), trees + len(roots[-1])
    endless = _endless(np.concatenate(feature), np.concatenate(value), np.concatenate(left))
    return *endless, np.concatenate(value), np.concatenate(roots), table


def _endless(feature: NDArray[Any], value: NDArray[Any], left: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Features, thresholds and left children with which every node leads on: a leaf to itself."""
    is_leaf = feature < 0
    own = np.arange(len(feature), dtype=np.int32)
    return np.maximum(feature, 0), np.where(is_leaf, np.float32(np.inf), value), np.where(is_leaf, own, left)
