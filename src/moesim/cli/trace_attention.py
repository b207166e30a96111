"""`moesim trace attention`: how sparse recorded attention is."""

import math
from pathlib import Path
from typing import Any

from moesim.cli.output import print_json, show, table
from moesim.errors import ConfigError, InputError
from moesim.reports.attention_figure import attention_figure
from moesim.reports.style import check_output, save
from moesim.workloads.attention_trace import SHARES, read_attention_trace
from moesim.workloads.attention_trace_statistics import KINDS, AttentionStatistics, attention_statistics


def attention_command(path: Path, output: Path | None, shortest: int | None, *, as_json: bool) -> None:
    """Compute the statistics, print them, and draw them.

    Args:
        path: the attention trace.
        output: figure to write.
        shortest: keys that a token must see to count; None for what the trace's windows ask for.
        as_json: print JSON in place of the table.
    """
    if output is not None:
        check_output(output)
    try:
        found = attention_statistics(read_attention_trace(path), shortest)
    except InputError as error:
        if error.place == "shortest_context":
            raise ConfigError("--shortest", error.rule, error.got) from None
        raise
    if output is not None:
        save(attention_figure(found), output)
    if as_json:
        asked = {"trace": str(path), "shortest": found.shortest_context}
        print_json(asked, _results(found), out=str(output) if output else None)
    else:
        _print(found, output)


def _results(found: AttentionStatistics) -> dict[str, Any]:
    """Per layer and head, as nested lists; the kinds by name."""
    return {
        "model": found.model,
        "tokens": found.tokens,
        "kept_fraction": {name: kept.tolist() for name, kept in found.kept.items()},
        "sparsity": found.sparsity().tolist(),
        "sink_mass": found.sink_mass.tolist(),
        "local_mass": found.local_mass.tolist(),
        "off_mass": found.off_mass.tolist(),
        "effective_keys": found.effective_keys.tolist(),
        "kind": [[KINDS[kind] for kind in row] for row in found.kinds()],
        "context_keys": found.lengths.tolist(),
        "kept_fraction_by_context": {
            name: [[None if math.isnan(cell) else cell for cell in row] for row in kept.tolist()]
            for name, kept in found.kept_by_length.items()
        },
    }


def _print(found: AttentionStatistics, output: Path | None) -> None:
    layers, heads = found.sink_mass.shape
    rows = table("share of the keys that holds", "mean", "sparsest head", "densest head", right=("mean",))
    for name, share in SHARES.items():
        kept = found.kept[name]
        rows.add_row(f"{share:.0%} of the mass", *(f"{value:.3f}" for value in (kept.mean(), kept.min(), kept.max())))
    kinds = found.kinds()
    counts = ", ".join(f"{name} {int((kinds == index).sum())}" for index, name in enumerate(KINDS))
    show(
        f"model:  {found.model}, {layers} layers of {heads} heads",
        f"tokens: {found.tokens:,} that see {found.shortest_context} keys or more",
        rows,
        f"heads by where 90% of their mass is: {counts}",
        f"  local: last {found.local_keys} keys; sink: first {found.sink_keys}; streaming: both; broad: elsewhere too",
    )
    if output is not None:
        show(f"saved to {output}")
