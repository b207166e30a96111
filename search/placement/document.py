"""A placement as the JSON document that `moesim.simulator.placement.load_placement` reads."""

import json
from typing import Any

from moesim.search.placement.balance import BalancedPlacement
from moesim.search.solution import Solution


def placement_document(model: str, solution: Solution[BalancedPlacement]) -> str:
    """The text of a placement file.

    `model` and `experts` are what the simulator needs; the rest says for whom it was made, and how good it is.

    Args:
        model: name of the model whose experts are placed.
        solution: what the search returned.
    """
    value = solution.value
    document = {
        "model": model,
        "devices": value.placement.ep,
        "objective_tokens": solution.objective,
        "bound_tokens": solution.bound,
        "gap_fraction": solution.gap,
        "status": solution.status,
        "layers": layer_rows(value),
        "experts": value.placement.slots.tolist(),
    }
    lines = [f"  {json.dumps(key)}: {_text(content)}" for key, content in document.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def layer_rows(value: BalancedPlacement) -> list[dict[str, Any]]:
    """What is known about every layer."""
    return [
        {
            "layer": layer,
            "max_load_tokens": float(value.max_load_tokens[layer]),
            "mean_load_tokens": float(value.mean_load_tokens[layer]),
            "imbalance": float(value.imbalance[layer]),
            "bound_tokens": float(value.bound_tokens[layer]),
            "gap_fraction": float(value.gap_fraction[layer]),
            "status": str(status),
        }
        for layer, status in enumerate(value.status)
    ]


def _text(content: object) -> str:
    """A line per row of a table, so that people can read the file and compare two."""
    if not isinstance(content, list):
        return json.dumps(content, allow_nan=False)
    rows = ",\n".join(f"    {json.dumps(row, allow_nan=False)}" for row in content)
    return f"[\n{rows}\n  ]"
