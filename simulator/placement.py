"""Which expert-parallel rank holds which expert, for every MoE layer.

A placement is `slots: int32[moe_layer, slot]`, the expert in each slot; rank `r` of `ep` owns the slots
`r * per_rank ... (r + 1) * per_rank - 1`. An expert in several slots is replicated, and its tokens are dealt to its
replicas in turn. The same table is known to serving engines as the physical-to-logical expert map.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from moesim.errors import ConfigError, DataError
from moesim.workloads.models import Model

CONTIGUOUS = "contiguous"


@dataclass(frozen=True)
class Placement:
    """Expert of every slot."""

    slots: NDArray[np.int32]  # [moe_layer, slot]
    ep: int

    @property
    def slots_per_rank(self) -> int:
        """Slots that each expert-parallel rank owns in each layer."""
        return int(self.slots.shape[1]) // self.ep

    def of_layers(self, model: Model, layers: range) -> Self | None:
        """The part for some of the model's layers; None if no MoE layer is among them."""
        rows = [row for row, (layer, _) in enumerate(model.moe_layers) if layer in layers]
        return type(self)(self.slots[rows], self.ep) if rows else None

    @classmethod
    def contiguous(cls, moe_layers: int, experts: int, ep: int) -> Self:
        """Experts in order, equally many per rank, no replicas."""
        return cls(np.tile(np.arange(experts, dtype=np.int32), (moe_layers, 1)), ep)

    def replicas(self, experts: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Slots of every expert.

        Returns:
            (first, order): `order: int32[moe_layer, slot]` lists the slots sorted by expert, and those of expert `e`
            stand at `first[layer, e] ... first[layer, e + 1] - 1`; `first: int32[moe_layer, expert + 1]`.
        """
        order = np.argsort(self.slots, axis=1, kind="stable").astype(np.int32)
        counts = np.stack([np.bincount(layer, minlength=experts) for layer in self.slots])
        first = np.zeros((len(self.slots), experts + 1), dtype=np.int32)
        first[:, 1:] = counts.cumsum(axis=1)
        return first, order


def load_placement(
    reference: str, model: Model, ep: int, base: Path | None = None, place: str = "placement"
) -> Placement:
    """`contiguous`, or a JSON file `{"model": name, "experts": [[expert of slot 0, ...] per MoE layer]}`.

    Args:
        reference: the word or the path of the file.
        model: what is placed.
        ep: expert-parallel ranks.
        base: folder that a relative path starts from.
        place: where the reference stands, for errors.

    Raises:
        ConfigError: the model is dense.
        DataError: missing or broken file, a placement for another model or other ranks, an expert without a slot, or
            slots that do not divide over the ranks.
    """
    if not model.moe_layers:
        raise ConfigError(place, f"a placement needs routed experts, but {model.name} is dense", reference)
    experts = model.moe_layers[0][1].experts
    if reference == CONTIGUOUS:
        return Placement.contiguous(len(model.moe_layers), experts, ep)
    path = Path(base or ".") / Path(reference).expanduser()
    if not path.is_file():
        raise DataError(place, f"must be `{CONTIGUOUS}` or an existing JSON file", str(path))
    slots = _read_slots(path, model, ep)
    _check_slots(slots, path, model, ep)
    return Placement(slots.astype(np.int32), ep)


def _read_slots(path: Path, model: Model, ep: int) -> NDArray[np.int64]:
    place = str(path)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(place, f"cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(place, f"must be valid JSON ({error})") from None
    if not isinstance(document, dict) or "experts" not in document:
        raise DataError(place, 'must be an object with the keys "model" and "experts"')
    if document.get("model") != model.name:
        raise DataError(f"{place}: model", f"must be {model.name}", document.get("model"))
    if document.get("devices", ep) != ep:
        raise DataError(f"{place}: devices", f"must be the ep = {ep} ranks of the scenario", document["devices"])
    slots = _table(document["experts"])
    if slots is None:
        raise DataError(f"{place}: experts", "must be a table of expert numbers, equally many per layer")
    return slots


def _table(rows: Any) -> NDArray[np.int64] | None:
    """Rows of whole numbers as an array, None where they are none."""
    try:
        table = np.array(rows)
    except ValueError:  # of different lengths
        return None
    whole = np.issubdtype(table.dtype, np.signedinteger) and table.size
    return table.astype(np.int64) if whole else None


def _check_slots(slots: NDArray[np.int64], path: Path, model: Model, ep: int) -> None:
    experts, layers = model.moe_layers[0][1].experts, len(model.moe_layers)
    place = f"{path}: experts"
    if slots.ndim != 2 or len(slots) != layers:  # noqa: PLR2004  # layers by slots
        raise DataError(place, f"must have one row per MoE layer ({layers})", slots.shape)
    if slots.shape[1] % ep:
        raise DataError(place, f"the slots per layer must divide over ep = {ep} ranks", slots.shape[1])
    for layer, row in enumerate(slots):
        outside = row[(row < 0) | (row >= experts)]
        if len(outside):
            raise DataError(f"{place}[{layer}]", f"experts must lie in 0 ... {experts - 1}", int(outside[0]))
        missing = np.setdiff1d(np.arange(experts), row)
        if len(missing):
            raise DataError(f"{place}[{layer}]", "every expert needs a slot; none for expert", int(missing[0]))
