"""Deployments of NVIDIA's aiconfigurator: `silicon_points.csv`, a dump of InferenceMAX and other benchmarks.

A row per measurement: `silicon_ttft_ms` and `silicon_tpot_ms` at `silicon_concurrency` requests in flight. Where
`moe_tp_size == moe_ep_size == N > 1`, `tp_size` or `attention_dp_size` was multiplied by N: the deployment has N GPUs.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from moesim.configs.loader import find
from moesim.errors import DataError
from moesim.reports.validation.serving_deployment import Deployment

FILE = "silicon_points.csv"
_NUMBERS = ("isl", "osl", "silicon_ttft_ms", "silicon_tpot_ms")
_TEXTS = ("id", "backend", "model_path", "system", "mode")
_FP8 = {"fp8", "fp8_block"}
_DENSE = ("Llama", "Qwen3-32B")
_SCHEDULER = ("memory_utilization", "kernels", "balance_steps")
"""Settings of the scheduler that a server's rule may state as they are."""
AGGREGATED_MOE, AGGREGATED_DENSE = "aggregated, MoE", "aggregated, dense"
DISAGGREGATED = "prefill and decode apart"


@dataclass(frozen=True)
class Replay:
    """How much of a benchmark is simulated.

    Args:
        waves: requests per slot; as many as the benchmark has if None.
        fast_forward: steps played as one.
    """

    waves: int | None = 4
    fast_forward: int = 32


@dataclass(frozen=True)
class _Row:
    """A row of the file as text, and where it stands."""

    place: str
    text: Mapping[str, str]

    def number(self, name: str, default: float | None = None) -> float:
        text = self.text.get(name, "")
        if not text and default is not None:
            return default
        try:
            value = float(text)
        except ValueError:
            raise DataError(f"{self.place}: {name}", "must be a number", text) from None
        if not 0 <= value < float("inf"):
            raise DataError(f"{self.place}: {name}", "must be finite and >= 0", value)
        return value

    @cached_property
    def gpu(self) -> str:
        return self.text["system"].replace("_", "-")

    @cached_property
    def model(self) -> str:
        return self.text["model_path"].rpartition("/")[2]

    @cached_property
    def concurrency(self) -> int | None:
        value = self.number("silicon_concurrency", 0.0)
        return int(value) or None

    @cached_property
    def day(self) -> str:
        """When it was measured, `2026-01-28`; empty if that is not stated."""
        return self.text.get("measured", "")[:10]

    def matches(self, rule: Mapping[str, Any]) -> bool:
        """Whether a rule of `configs/validation/serving.yaml` is about this row; what it leaves out does not matter."""
        is_row = {"framework": self.text["backend"], "model": self.model, "gpu": self.gpu}
        if any(rule.get(name, value) != value for name, value in is_row.items()):
            return False
        return str(rule.get("since", "")) <= self.day and (not self.day or self.day <= str(rule.get("until", "9")))

    def cut(self, prefix: str = "") -> dict[str, int]:
        """Degrees of parallelism, with the multiplied ones undone."""
        size = {
            name: int(self.number(f"{prefix}{name}_size", 1.0)) or 1
            for name in ("tp", "attention_dp", "moe_tp", "moe_ep")
        }
        tp, dp, ep = size["tp"], size["attention_dp"], size["moe_ep"]
        if size["moe_tp"] == ep > 1:
            if tp * dp > ep:
                tp, dp = (tp // ep, dp) if tp >= ep else (tp, dp // ep)
            tp, dp = max(tp, 1), max(dp, 1)
            if tp * dp < ep:
                tp, dp = (ep, 1) if dp == 1 else (1, ep)
        return {"tp": tp, "dp": dp, "ep": min(ep, tp * dp)}


def read_silicon(path: Path, replay: Replay | None = None) -> list[Deployment]:
    """Every row of the file.

    Args:
        path: the CSV file.
        replay: how much to simulate.

    Raises:
        DataError: a file that is missing, lacks a column, or has a value that cannot be, with its row.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file, restval="")
            missing = [name for name in (*_TEXTS, *_NUMBERS) if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path}:1", "must have the column", missing[0])
            rows = [_Row(f"{path}:{reader.line_num}", row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(str(path), f"must be a CSV file ({error})") from error
    known = find("validation", "serving").data
    return [_deployment(row, known, replay or Replay()) for row in rows]


def _deployment(row: _Row, known: Mapping[str, Any], replay: Replay) -> Deployment:
    mode, framework = row.text["mode"], row.text["backend"]
    measured = {op: {"mean": row.number(f"silicon_{op}_ms") * 1e-3} for op in ("ttft", "tpot")}
    if min(value["mean"] for value in measured.values()) <= 0:
        raise DataError(row.place, "silicon_ttft_ms and silicon_tpot_ms must be > 0")
    isl, osl = int(row.number("isl")), int(row.number("osl"))
    cut = _cut(row, known) if mode == "agg" else {}
    # Twins of a deployment differ in how its experts are said to be cut, so that is left out of the group.
    where = f"{cut['tp'] * cut['dp']} GPUs" if mode == "agg" else row.text["id"]
    speculation = _speculation(row, known)
    family = _family(row, speculative=bool(speculation))
    unanswered = _unanswered(row, known)
    client = known["clients"]["fixed" if row.model in known["other_client"] else "inferencemax"]
    tokens_per_step = _tokens_per_step(row, speculation)
    scenario, edits = (None, ()) if unanswered else _scenario(row, known, client, replay, tokens_per_step)
    return Deployment(
        id=row.text["id"],
        group=(family, framework, row.gpu, row.text.get("precision") or "bf16", mode, where, f"{isl}/{osl}"),
        framework=framework,
        model=family,
        gpu=row.gpu,
        scenario=scenario,
        assignments=tuple(edits),
        measured_s=measured,
        concurrency=row.concurrency,
        prompts_per_slot=client["prompts_per_slot"],
        tokens_per_step=tokens_per_step,
        unanswered=unanswered,
        broken=_broken(row, known, osl),
        section=_section(row),
    )


def _section(row: _Row) -> str:
    if row.text["mode"] != "agg":
        return DISAGGREGATED
    return AGGREGATED_DENSE if row.model.startswith(_DENSE) else AGGREGATED_MOE


def _speculation(row: _Row, known: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rule of speculative decoding of the server; empty if it has none. Only recipes with it state their ep."""
    matching = (rule for rule in known["speculative"] if row.matches(rule) and row.cut()["ep"] > 1)
    return next(matching, {})


def _drafts(row: _Row, speculation: Mapping[str, Any]) -> int:
    """Tokens that are guessed for each step of a sequence."""
    if not speculation:
        return 0
    return int(speculation["drafts_with_dp" if row.cut()["dp"] > 1 else "drafts"])


def _tokens_per_step(row: _Row, speculation: Mapping[str, Any]) -> float:
    return float(speculation["tokens_per_step"][_drafts(row, speculation)]) if speculation else 1.0


def _cut(row: _Row, known: Mapping[str, Any]) -> dict[str, int]:
    """Degrees of parallelism; where the recipe decides, experts on all GPUs and attention data-parallel from a load."""
    cut, server = row.cut(), _server(row, known)
    gpus = cut["tp"] * cut["dp"]
    above = server.get("dp_above", {}).get(int(row.number("isl")))
    if above is not None and (row.concurrency or 0) > above:
        cut |= {"tp": 1, "dp": gpus}
    return cut | {"ep": gpus} if server.get("experts") == "all_gpus" else cut


def _family(row: _Row, *, speculative: bool) -> str:
    """The model as calibrations tell models apart: DeepSeek-V3 here is R1 under another name."""
    name = "DeepSeek-R1" if row.model.startswith("DeepSeek") else row.model
    return f"{name} with MTP" if speculative else name


def _unanswered(row: _Row, known: Mapping[str, Any]) -> str | None:
    if not _server(row, known):
        return "no settings of this serving engine are known"
    if row.model not in known["models"]:
        return "no shipped model of this name"
    if row.concurrency is None:
        return "the concurrency is not stated"
    if row.text["mode"] != "agg" and not (row.text.get("prefill_num_workers") and row.text.get("decode_num_workers")):
        return "the number of workers is not stated"
    return None


def _broken(row: _Row, known: Mapping[str, Any], osl: int) -> str | None:
    load = {"concurrency": row.concurrency, "osl": osl}
    for rule in known["broken"]:
        if row.matches(rule) and all(rule.get(name, value) == value for name, value in load.items()):
            return str(rule["reason"])
    return None


# --- scenarios -----------------------------------------------------------------------------------------------------


def _scenario(
    row: _Row, known: Mapping[str, Any], client: Mapping[str, Any], replay: Replay, tokens_per_step: float
) -> tuple[dict[str, Any], list[str]]:
    """The scenario and its edits."""
    framework = row.text["backend"]
    server = _server(row, known)
    scenario: dict[str, Any] = {
        "model": known["models"][row.model]["name"],
        **{name: value for name, value in known["models"][row.model].items() if name == "routing"},
        "requests": _requests(row, client, replay, tokens_per_step),
        "scheduler": known["frameworks"][framework],
        "fast_forward": replay.fast_forward,
    }
    edits = [f"model.dtypes.{part}={dtype}" for part, dtype in _dtypes(row, server).items()]
    edits.append(f"scheduler.token_budget={_token_budget(row, known, server)}")
    if server.get("max_num_seqs") == "concurrency":
        edits.append(f"scheduler.max_num_seqs={_sequences(row, known)}")
    edits += [f"scheduler.{name}={server[name]}" for name in _SCHEDULER if name in server]
    edits += [f"scheduler.{name}={value}" for name, value in known["server_host"].items() if name != "source"]
    if row.text["mode"] == "agg":
        cut = _cut(row, known)
        return scenario | {"system": _system(row, cut["tp"] * cut["dp"]), "parallelism": cut}, edits
    return scenario | _pools(row), edits


def _server(row: _Row, known: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of the row's server; empty if none are known of its engine."""
    servers: list[Mapping[str, Any]] = known["servers"]
    return next((server for server in servers if row.matches(server)), {})


def _sequences(row: _Row, known: Mapping[str, Any]) -> int:
    """Requests in flight of one attention rank."""
    ranks = _cut(row, known)["dp"] if row.text["mode"] == "agg" else 1
    return max(1, (row.concurrency or 1) // ranks)


def _token_budget(row: _Row, known: Mapping[str, Any], server: Mapping[str, Any]) -> int:
    """Most tokens of a step; with `fits_prompts` room for one prompt beside all sequences of a rank, in units of 64."""
    least = int(server["token_budget"])
    if not server.get("fits_prompts"):
        return least
    decodes = _sequences(row, known) * (1 + _drafts(row, _speculation(row, known)))
    return max(least, -(-(decodes + int(row.number("isl")) + 64) // 64) * 64)


def _requests(row: _Row, client: Mapping[str, Any], replay: Replay, tokens_per_step: float) -> dict[str, Any]:
    slots, shortest = row.concurrency or 1, client["shortest"]
    isl, osl = row.number("isl"), row.number("osl") / tokens_per_step
    waves = min(replay.waves or client["prompts_per_slot"], client["prompts_per_slot"])
    requests: dict[str, Any] = {"kind": "synthetic", "num_requests": int(waves * slots), "concurrency": slots}
    for name, tokens in (("prompt_tokens", isl), ("output_tokens", osl)):
        least, most = max(1, round(tokens * shortest)), max(1, round(tokens))
        requests[name] = {"kind": "uniform", "min": least, "max": most} if least < most else most
    return requests


def _dtypes(row: _Row, server: Mapping[str, Any]) -> dict[str, str]:
    """Number formats that differ from the shipped model's."""
    dtypes = {"kv_cache": server["kv_cache"]} if "kv_cache" in server else {}
    is_dense = row.model.startswith(_DENSE)
    if row.text.get("gemm_quant_mode") in _FP8 and (is_dense or row.model.startswith("Qwen3.5")):
        dtypes["weights"] = row.text["gemm_quant_mode"] if is_dense else "fp8_block"
        if not is_dense:
            dtypes["experts"] = "fp8_block"
    return dtypes


def _system(row: _Row, devices: int) -> str:
    return f"{row.gpu}-{devices}"


def _pools(row: _Row) -> dict[str, Any]:
    pools = {}
    for role in ("prefill", "decode"):
        cut, workers = row.cut(f"{role}_"), int(row.number(f"{role}_num_workers"))
        devices = cut["tp"] * cut["dp"] * workers
        pools[role] = {"role": role, "replicas": workers, "parallelism": cut, "system": _system(row, devices)}
    return {"system": pools["prefill"]["system"], "pools": pools}
