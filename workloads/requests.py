"""Requests: when they arrive, how long their prompts are, and how many tokens they get back."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from moesim.configs.loader import Config, Document, Reference, validate
from moesim.errors import ConfigError, DataError, InputError
from moesim.units import PerSecond
from moesim.workloads.lengths import Length, draw_lengths
from moesim.workloads.prefix_blocks import MOONCAKE_BLOCK_TOKENS, PrefixBlocks
from moesim.workloads.references import find_or_wrap, folder_of
from moesim.workloads.request_files import SUFFIXES, check_columns, read_requests
from moesim.workloads.routing_trace import DECODE, RoutingTrace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")


@dataclass(frozen=True, eq=False)
class Requests:
    """Requests in order of arrival, column by column.

    Args:
        arrival_s: float64[request] seconds from the start of the run; all 0 in a closed loop.
        prompt_tokens: int64[request] >= 1.
        output_tokens: int64[request] >= 1, the first one from prefill included.
        source: where they come from.
        dropped: draws of a length distribution that were no request because a length was zero.
        concurrency: requests in flight in a closed loop; None is an open loop that follows `arrival_s`.
        prefix: hashes of the prompts' blocks, where known.

    Raises:
        DataError: no requests, or the first one that breaks a rule.
    """

    arrival_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    source: str
    dropped: int = 0
    concurrency: int | None = None
    prefix: PrefixBlocks | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.arrival_s), len(self.prompt_tokens), len(self.output_tokens)}
        if len(lengths) > 1:
            raise DataError(self.source, "columns must be equally long", sorted(lengths))
        if lengths == {0}:
            rule = f"must have at least one request, all {self.dropped} draws had a zero length"
            raise DataError(self.source, rule if self.dropped else "must have at least one request")
        check_columns(self.arrival_s, self.prompt_tokens, self.output_tokens, self._place)

    def _place(self, row: int, column: int) -> str:
        return f"{self.source}: request {row}: {_COLUMNS[column]}"

    def __len__(self) -> int:
        return len(self.arrival_s)

    def head(self, n: int) -> Self:
        """The first `n` requests, or all if there are fewer.

        Raises:
            InputError: n is less than 1.
        """
        columns = {name: getattr(self, name)[: _at_least_one(n)] for name in _COLUMNS}
        return replace(self, **columns, prefix=None if self.prefix is None else self.prefix.head(n))


class _RequestsConfig(Config):
    """What all kinds have in common."""

    concurrency: PositiveInt | None = Field(
        None, description="closed loop: requests in flight, each completion admits the next; none: open loop"
    )
    source: str = Field("", description="where the numbers come from")


class FileRequests(_RequestsConfig):
    """Requests of a file: our own columns, Azure or Mooncake traces, recorded vLLM runs."""

    kind: Literal["file"]
    path: str = Field(description=".csv, .tsv or .jsonl, also with .gz; relative to the file that names it")
    num_requests: PositiveInt | None = Field(None, description="the first so many, at most; none: all")
    prefix_block_tokens: PositiveInt = Field(
        MOONCAKE_BLOCK_TOKENS, description="prompt tokens per entry of `hash_ids`, as in Mooncake traces"
    )


class _ArrivalsConfig(_RequestsConfig):
    """Random arrivals."""

    rate_per_s: PerSecond | None = Field(
        None, description="mean arrival rate in requests/s; none: all arrive at time 0"
    )
    burstiness: PositiveFloat = Field(
        1.0,
        description="shape of the gamma distribution of gaps between arrivals, as in vLLM's benchmark; "
        "1: Poisson arrivals, less: bursts, more: regular; the mean rate stays",
    )

    @model_validator(mode="after")
    def _has_rate(self) -> Self:
        if self.rate_per_s is None and self.burstiness != 1.0:
            raise ValueError(f"`burstiness` needs `rate_per_s`, but got burstiness={self.burstiness} without a rate")
        return self


class SyntheticRequests(_ArrivalsConfig):
    """Requests with lengths drawn from distributions and random arrivals."""

    kind: Literal["synthetic"]
    num_requests: PositiveInt = Field(description="draws; those with a zero length are dropped and counted")
    prompt_tokens: Length = Field(description="prompt length in tokens")
    output_tokens: Length = Field(description="output length in tokens")


class ListedRequests(_RequestsConfig):
    """Requests one by one, in order of arrival."""

    kind: Literal["listed"]
    arrival_s: list[float] = Field(description="arrivals in seconds from the start, ascending")
    prompt_tokens: list[int] = Field(description="prompt length of each request")
    output_tokens: list[int] = Field(description="output length of each request")
    num_requests: PositiveInt | None = Field(None, description="the first so many, at most; none: all")


class TraceRequests(_ArrivalsConfig):
    """The requests of the routing trace that the scenario replays."""

    kind: Literal["trace"]
    num_requests: PositiveInt | None = Field(None, description="the first so many, at most; none: all")


def _shorthand(value: Any) -> Any:
    """The path of a request file, and `trace`, as mappings."""
    if isinstance(value, str) and value.endswith(SUFFIXES):
        return {"kind": "file", "path": value}
    return {"kind": "trace"} if value == "trace" else value


RequestsConfig = Annotated[
    FileRequests | SyntheticRequests | ListedRequests | TraceRequests,
    Field(discriminator="kind"),
    BeforeValidator(_shorthand),
]


def load_requests(
    reference: Reference,
    rng: np.random.Generator,
    *,
    base: str | Path | None = None,
    num_requests: int | None = None,
    trace: RoutingTrace | None = None,
) -> Requests:
    """Requests by reference.

    Args:
        reference: name of a shipped configuration; path of a YAML file; path of a request file (`.csv`, `.jsonl`, ...);
            `trace`; or a mapping with `kind` file, synthetic, listed or trace.
        rng: draws lengths and arrivals.
        base: folder that relative paths start from, as in `moesim.configs.loader.find`.
        num_requests: in place of the one in the configuration.
        trace: the routing trace in use, for kind trace.

    Raises:
        ConfigError: unknown name, a configuration that breaks a rule, or kind trace without a trace.
        DataError: a file that is missing, cut off or broken, or no requests at all.
    """
    document = find_or_wrap("requests", reference, base, _shorthand)
    config: RequestsConfig = validate(RequestsConfig, document)  # type: ignore[arg-type]  # pydantic takes unions
    if num_requests is not None:
        config = config.model_copy(update={"num_requests": _at_least_one(num_requests)})
    requests = _requests(config, document, rng, base, trace)
    if config.concurrency is None:
        return requests
    return replace(requests, arrival_s=np.zeros(len(requests)), concurrency=config.concurrency)


def requests_from_trace(
    trace: RoutingTrace,
    rng: np.random.Generator | None = None,
    rate_per_s: float | None = None,
    burstiness: float = 1.0,
) -> Requests:
    """The requests whose routing `trace` recorded, one by one in its order.

    The first output token comes from prefill and every decode step gives one more, so a request has as many outputs as
    decode steps and one.

    Args:
        trace: the recording.
        rng: draws the arrivals; needed with a rate.
        rate_per_s: mean rate of arrivals; None lets all arrive at time 0.
        burstiness: shape of the gamma distribution of gaps between arrivals; 1 is Poisson.

    Raises:
        DataError: a request without a prompt.
    """
    decoded = np.bincount(trace.request[trace.phase == DECODE], minlength=len(trace.names))
    arrival_s = _arrivals(rng, len(trace.names), rate_per_s, burstiness)
    return Requests(arrival_s, trace.first_decode_position, decoded.astype(np.int64) + 1, trace.source)


def _at_least_one(num_requests: int) -> int:
    if num_requests < 1:
        raise InputError("num_requests", "must be >= 1", num_requests)
    return num_requests


def _requests(
    config: RequestsConfig,
    document: Document,
    rng: np.random.Generator,
    base: str | Path | None,
    trace: RoutingTrace | None,
) -> Requests:
    """Requests of `config`, as an open loop."""
    if isinstance(config, SyntheticRequests):
        return _synthetic(config, document, rng, base)
    if isinstance(config, FileRequests):
        path = folder_of(document, "path", base) / Path(config.path).expanduser()
        requests = _of_file(path, config.prefix_block_tokens)
    elif isinstance(config, ListedRequests):
        prompt, output = np.array(config.prompt_tokens, np.int64), np.array(config.output_tokens, np.int64)
        requests = Requests(np.array(config.arrival_s), prompt, output, config.source or document.place())
    elif trace is None:
        raise ConfigError(document.place(), "requests of kind trace need routing that is a trace")
    else:
        requests = requests_from_trace(trace, rng, config.rate_per_s, config.burstiness)
    return requests if config.num_requests is None else requests.head(config.num_requests)


def _of_file(path: Path, prefix_block_tokens: int) -> Requests:
    arrival_s, prompt, output, prefix = read_requests(path)
    if prefix is not None:
        prefix = replace(prefix, block_tokens=prefix_block_tokens)
    return Requests(arrival_s, prompt, output, source=str(path), prefix=prefix)


def _synthetic(
    config: SyntheticRequests, document: Document, rng: np.random.Generator, base: str | Path | None
) -> Requests:
    size = config.num_requests
    arrival_s = _arrivals(rng, size, config.rate_per_s, config.burstiness)
    folder = folder_of(document, "prompt_tokens", base)
    prompt, output = draw_lengths(config.prompt_tokens, config.output_tokens, rng, size, folder)
    kept = (prompt > 0) & (output > 0)
    source = config.source or document.file
    return Requests(arrival_s[kept], prompt[kept], output[kept], source, dropped=size - int(kept.sum()))


def _arrivals(rng: np.random.Generator | None, size: int, rate_per_s: float | None, burstiness: float) -> Floats:
    """Arrivals with gaps that are gamma distributed: mean 1 / rate, coefficient of variation 1 / sqrt(burstiness).

    Without a rate all arrive at time 0.
    """
    if rate_per_s is None:
        return np.zeros(size)
    if rng is None:
        raise InputError("rate_per_s", "random arrivals need a random generator", rate_per_s)
    return np.cumsum(rng.gamma(burstiness, 1.0 / (rate_per_s * burstiness), size))
