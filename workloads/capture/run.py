"""Capture: run a model over texts, prefill and decode, and keep the routing and the attention of every request."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import DataError
from moesim.workloads import attention_trace, routing_files
from moesim.workloads.capture.loading import LoadedModel, import_torch, load_model, load_tokenizer
from moesim.workloads.capture.parts import PLAN_KEY, Parts, check_finished, json_metadata
from moesim.workloads.capture.recorder import Recorder
from moesim.workloads.capture.settings import CaptureSettings
from moesim.workloads.capture.texts import Prompts, read_prompts
from moesim.workloads.routing_trace import DECODE, PREFILL

Progress = Callable[[int, int], None]
"""Takes the tokens that are done, and all tokens."""


@dataclass(frozen=True)
class CaptureReport:
    """What a capture did.

    Args:
        model: its name.
        requests: in the trace.
        tokens: in the trace.
        captured_tokens: of them, run by this call; the others were there already.
        layers: MoE layers.
        experts: routed experts per layer.
        top_k: experts per token.
        trace: the routing trace.
        attention: the attention trace, if one was wanted.
    """

    model: str
    requests: int
    tokens: int
    captured_tokens: int
    layers: int
    experts: int
    top_k: int
    trace: Path
    attention: Path | None


def capture(
    model: str,
    texts: Sequence[Path],
    out: Path,
    settings: CaptureSettings | None = None,
    *,
    attention: Path | None = None,
    name: str | None = None,
    progress: Progress = lambda _done, _total: None,
) -> CaptureReport:
    """Record the routing, and on demand the attention, of a Mixture-of-Experts model that reads texts and goes on.

    A folder `<out>.parts` holds what is finished until the end; a capture that was killed goes on from there when it is
    called again with the same arguments, and finished requests are not run again.

    Args:
        model: folder of a Hugging Face model, or its name on the hub.
        texts: files of text.
        out: the routing trace to write (.parquet), as `moesim.workloads.routing_files` reads it, with two further
            columns: `gate` float16[layers x top_k], the weight of each expert's output, and `token` int32, the id of
            the token that was fed in. Ranks are in descending order of gate weight.
        settings: how texts are cut and the model is run.
        attention: the attention trace to write (.parquet).
        name: of the model in the trace; by default that of its folder.
        progress: called after every forward pass.

    Raises:
        InputError: PyTorch or transformers is missing, or a device or value cannot be.
        DataError: a model, text or tokenizer that cannot be used, or an output that belongs to another capture.
    """
    settings = settings or CaptureSettings()
    loaded = load_model(model, settings, attention=attention is not None, name=name)
    prompts = read_prompts(texts, load_tokenizer(model, settings), loaded.vocabulary, settings)
    check_context(loaded, prompts, settings)
    plan = make_plan(loaded, prompts, settings, attention=attention is not None)
    batches = prompts.batches(settings.batch)
    targets = {"routing": out} | ({} if attention is None else {"attention": attention})
    tokens = sum(len(ids) + settings.decode_tokens for ids in prompts.ids)
    captured = 0
    finished = [check_finished(target, plan) for target in targets.values()]
    if not all(finished):
        parts = Parts(out.with_name(f"{out.name}.parts"), tuple(targets))
        parts.open(plan)
        captured = _run_batches(loaded, prompts, settings, parts, progress)
        headers = _headers(loaded, prompts, settings, plan)
        for kind, target in reversed(targets.items()):
            parts.join(kind, len(batches), headers[kind], target)
        parts.remove()
    shape = len(loaded.routers), loaded.experts, loaded.top_k
    return CaptureReport(loaded.name, len(prompts), tokens, captured, *shape, trace=out, attention=attention)


def check_context(loaded: LoadedModel, prompts: Prompts, settings: CaptureSettings) -> None:
    """Refuse requests longer than the model's context.

    Raises:
        DataError: the longest one is.
    """
    longest = len(prompts.ids[0]) + settings.decode_tokens
    if longest > loaded.max_tokens:
        raise DataError(loaded.name, f"prompt and decoded tokens must fit in {loaded.max_tokens} positions", longest)


def make_plan(loaded: LoadedModel, prompts: Prompts, settings: CaptureSettings, *, attention: bool) -> dict[str, Any]:
    """What a capture depends on; two with equal plans write the same."""
    choices = {key: value for key, value in asdict(settings).items() if key not in {"device", "requests", "tokenizer"}}
    return {
        "model": loaded.name,
        "weights": loaded.fingerprint(),
        "prompts": prompts.fingerprint(),
        "attention": attention,
        **choices,
    }


def run_batch(
    loaded: LoadedModel,
    prompts: Prompts,
    batch: range,
    settings: CaptureSettings,
    *,
    attention: bool,
    advance: Callable[[int], None] = lambda _tokens: None,
) -> dict[str, dict[str, NDArray[Any]]]:
    """Run the requests of one batch, prefill in chunks and then decode.

    Returns:
        Columns by kind (`routing`, `attention`), tokens sorted by request and position.
    """
    torch, transformers = import_torch()
    fed = np.stack([prompts.ids[request] for request in batch])
    prompt_tokens = fed.shape[1]
    generators = [_generator(torch, settings.seed, request) for request in batch]
    cache = transformers.DynamicCache(config=loaded.model.config)
    with torch.inference_mode(), Recorder(loaded, settings, *fed.shape, attention=attention) as recorder:

        def forward(ids: NDArray[np.int32], start: int) -> Any:
            inputs = torch.from_numpy(ids.astype(np.int64)).to(loaded.model.device)
            with recorder.positions(start, start + ids.shape[1]):
                output = loaded.model(input_ids=inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            advance(ids.size)
            return output.logits[:, -1]

        for start in range(0, prompt_tokens, settings.chunk_tokens):
            logits = forward(fed[:, start : start + settings.chunk_tokens], start)
        for position in range(prompt_tokens, prompt_tokens + settings.decode_tokens):
            fed = np.column_stack([fed, _draw(torch, logits, settings.temperature, generators)])
            logits = forward(fed[:, -1:], position)
    return _columns(recorder, fed, batch, prompt_tokens)


def _run_batches(
    loaded: LoadedModel, prompts: Prompts, settings: CaptureSettings, parts: Parts, progress: Progress
) -> int:
    """Run what is not there yet; returns the tokens that were run."""
    batches = prompts.batches(settings.batch)
    sizes = [sum(len(prompts.ids[request]) + settings.decode_tokens for request in batch) for batch in batches]
    done = sum(size for number, size in enumerate(sizes) if parts.done(number))
    found, total = done, sum(sizes)

    def advance(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress(done, total)

    progress(done, total)
    for number, batch in enumerate(batches):
        if not parts.done(number):
            with_attention = "attention" in parts.kinds
            parts.write(number, run_batch(loaded, prompts, batch, settings, attention=with_attention, advance=advance))
    return total - found


def _generator(torch: Any, seed: int, request: int) -> Any:
    """Random numbers that depend on the request, not on what runs beside it."""
    state = int(np.random.SeedSequence([seed, request]).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator().manual_seed(state)


def _draw(torch: Any, logits: Any, temperature: float, generators: Sequence[Any]) -> NDArray[np.int64]:
    """The next token of every request, int64[request]."""
    logits = logits.float().cpu()
    if temperature == 0:
        return np.asarray(logits.argmax(-1).numpy(), dtype=np.int64)
    shares = (logits / temperature).softmax(-1)
    drawn = [int(torch.multinomial(row, 1, generator=rng)) for row, rng in zip(shares, generators, strict=True)]
    return np.array(drawn, dtype=np.int64)


def _columns(
    recorder: Recorder, fed: NDArray[np.integer], batch: range, prompt_tokens: int
) -> dict[str, dict[str, NDArray[Any]]]:
    everything = np.arange(fed.shape[1])
    rows = fed.size
    routing = _index(batch, everything, prompt_tokens) | {
        "expert": recorder.expert.reshape(rows, -1),
        "gate": recorder.gate.reshape(rows, -1),
        "token": fed.reshape(-1).astype(np.int32),
    }
    rows = len(batch) * len(recorder.sampled)
    statistics = {name: values.reshape(rows, -1) for name, values in recorder.attention.items()}
    return {"routing": routing, "attention": _index(batch, recorder.sampled, prompt_tokens) | statistics}


def _index(batch: range, positions: NDArray[np.int64], prompt_tokens: int) -> dict[str, NDArray[Any]]:
    phase = np.where(positions < prompt_tokens, PREFILL, DECODE)
    return {
        "request": np.repeat(np.arange(batch.start, batch.stop), len(positions)).astype(np.int32),
        "position": np.tile(positions, len(batch)).astype(np.int32),
        "phase": np.tile(phase, len(batch)).astype(np.uint8),
    }


def _headers(
    loaded: LoadedModel, prompts: Prompts, settings: CaptureSettings, plan: dict[str, Any]
) -> dict[str, dict[bytes, bytes]]:
    """Metadata of both files."""
    torch, transformers = import_torch()
    source = (
        f"moesim trace capture of {loaded.name}: {len(prompts)} requests, prompts of up to {len(prompts.ids[0])} "
        f"tokens of {', '.join(sorted(set(prompts.groups)))}, {settings.decode_tokens} decode steps at temperature "
        f"{settings.temperature:g}, seed {settings.seed}; transformers {transformers.__version__}, "
        f"PyTorch {torch.__version__}"
    )
    common = {
        "model": loaded.name,
        "source": source,
        "names": prompts.names,
        "groups": prompts.groups,
        "first_decode_position": [len(ids) for ids in prompts.ids],
    }
    routing = common | {"format": routing_files.FORMAT, "experts": loaded.experts, "top_k": loaded.top_k}
    attention = common | {
        "format": attention_trace.FORMAT,
        "layers": len(loaded.attentions),
        "heads": loaded.heads,
        "sink_keys": settings.sink_keys,
        "local_keys": settings.local_keys,
        "every": settings.attention_every,
        "window_tokens": loaded.window_tokens,
    }
    return {
        "routing": json_metadata([(routing_files.METADATA_KEY, routing), (PLAN_KEY, plan)]),
        "attention": json_metadata([(attention_trace.METADATA_KEY, attention), (PLAN_KEY, plan)]),
    }
