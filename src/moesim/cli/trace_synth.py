"""`moesim trace`: draw a routing trace from a profile, or fit a profile to a trace."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moesim.cli.output import number, print_json, show
from moesim.cli.progress import StageBars, progress_bar
from moesim.configs.documents import Document
from moesim.errors import ConfigError, InputError
from moesim.files import check_output
from moesim.workloads.models import load_model
from moesim.workloads.routing import load_routing, resolve_profile
from moesim.workloads.routing_files import write_routing_profile, write_routing_trace
from moesim.workloads.routing_fit import DEFAULT_STATES, fit_profile
from moesim.workloads.routing_profile import RoutingProfile
from moesim.workloads.routing_synth import synthesize_trace
from moesim.workloads.routing_trace import RoutingTrace

_FLAGS = {"skew": "--skew", "domain": "--domain", "lengths": "--prompt-tokens, --output-tokens"}


def synth_command(
    profile: str,
    output: Path,
    *,
    model: str | None,
    lengths: tuple[int, int, int],
    changes: tuple[float, str | None],
    prefill: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Draw a trace and write it.

    Args:
        profile: reference as `load_routing` takes it; a trace is fitted first.
        output: the parquet file to write.
        model: model that the trace is for; by default the profile's dimensions are kept.
        lengths: requests, prompt tokens and output tokens of each.
        changes: exponent of the popularity, and the domain to draw from.
        prefill: whether prompts are in the trace.
        seed: of every draw.
        as_json: print one JSON object instead of text.

    Raises:
        InputError: what cannot be.
    """
    check_output("--out", output, ".parquet")
    rng = np.random.default_rng(seed)
    requests, prompt_tokens, output_tokens = lengths
    try:
        found = _profile(profile, model, changes, rng)
        prompts, outputs = (np.full(requests, tokens, np.int64) for tokens in (prompt_tokens, output_tokens))
        total = requests * (prompt_tokens * prefill + output_tokens)
        with progress_bar("drawing", total, "tokens") as update:
            trace = synthesize_trace(
                found, prompts, outputs, rng, prefill=prefill, on_progress=lambda done, _: update(done)
            )
    except InputError as error:
        if error.place in _FLAGS:
            raise ConfigError(_FLAGS[error.place], error.rule, error.got) from None
        raise
    write_routing_trace(trace, output)
    _tell(trace, found, output, seed, as_json=as_json)


def fit_command(trace: str, output: Path, *, states: int, seed: int, as_json: bool) -> None:
    """Fit a profile to a trace and write it.

    Args:
        trace: reference as `load_routing` takes it.
        output: the npz file to write.
        states: per layer, at most.
        seed: of the sample of tokens and of the starts of the clusters.
        as_json: print one JSON object instead of text.

    Raises:
        InputError: what cannot be.
    """
    check_output("--out", output, ".npz")
    routing = load_routing(Document("--trace", trace))
    if not isinstance(routing, RoutingTrace):
        raise ConfigError("--trace", "must be a recorded trace", trace)
    profile = _fit(routing, states, seed)
    write_routing_profile(profile, output, np.float32)
    facts: dict[str, Any] = {
        "model": profile.model,
        "moe_layers": profile.layers,
        "experts": profile.experts,
        "top_k": profile.top_k,
        "states": profile.states.states if profile.states else 0,
        "domains": list(profile.domains.names) if profile.domains else [],
        "busiest_expert_over_mean": float((profile.popularity.max(axis=1) * profile.experts).mean()),
        "source": profile.source,
    }
    if as_json:
        print_json({"trace": trace, "states": states, "seed": seed}, facts, output=str(output))
        return
    shape = f"{profile.layers} MoE layers, top {profile.top_k} of {profile.experts} experts"
    lines = [
        f"{profile.model}: {shape}, {facts['states']} states per layer, {len(facts['domains'])} domains",
        f"source: {profile.source}",
        f"saved to {output}; use it with --routing {output}",
    ]
    show("\n".join(lines))


def _fit(trace: RoutingTrace, states: int = DEFAULT_STATES, seed: int = 0) -> RoutingProfile:
    with closing(StageBars("rounds")) as bars:
        return fit_profile(trace, states, seed, bars.show)


def _profile(
    reference: str, model: str | None, changes: tuple[float, str | None], rng: np.random.Generator
) -> RoutingProfile:
    """The profile to draw from: domain and skew first, because they are the recorded model's, then other dimensions."""
    skew, domain = changes
    routing = load_routing(Document("--profile", reference))
    if isinstance(routing, RoutingTrace):
        routing = _fit(routing)
    if isinstance(routing, RoutingProfile):
        routing = routing if domain is None else routing.of_domain(domain)
        routing = routing.with_skew(skew)
        if model is None:
            return routing
    elif model is None:
        raise ConfigError("--model", "must be given, because this routing has no dimensions of its own", reference)
    known = load_model(model)
    if not known.moe_layers:
        raise ConfigError("--model", "must have MoE layers", model)
    block = known.moe_layers[0][1]
    found = resolve_profile(routing, len(known.moe_layers), block.experts, block.top_k, rng)
    return _named(found, known.name)


def _named(profile: RoutingProfile, model: str) -> RoutingProfile:
    """`profile` as that of `model`, so that the trace replays on it."""
    return replace(profile, model=model)


def _tell(trace: RoutingTrace, profile: RoutingProfile, output: Path, seed: int, *, as_json: bool) -> None:
    loads = trace.loads()
    facts: dict[str, Any] = {
        "model": trace.model,
        "requests": len(trace.names),
        "tokens": trace.tokens,
        "moe_layers": trace.layers,
        "experts": trace.experts,
        "top_k": trace.top_k,
        "busiest_expert_over_mean": float((loads.max(axis=1) / loads.mean(axis=1)).mean()),
        "source": trace.source,
    }
    if as_json:
        print_json({"profile": profile.source, "seed": seed}, facts, output=str(output))
        return
    lines = [
        f"{trace.model}: {len(trace.names):,} requests, {trace.tokens:,} tokens",
        f"dimensions: {trace.layers} MoE layers, top {trace.top_k} of {trace.experts} experts",
        f"busiest expert over mean expert, mean of layers: {number(facts['busiest_expert_over_mean'])}",
        f"source: {trace.source}",
        f"saved to {output}; use it with --requests trace --routing {output}",
    ]
    show("\n".join(lines))
