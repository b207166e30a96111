"""How a serving engine communicates: which kernels it calls where there is a choice."""

from typing import Literal, NamedTuple

AllReduce = Literal["nccl", "custom"]
ExpertExchange = Literal[
    "all_to_all",
    "all_gather_reduce_scatter",
    "all_reduce",
    "deepep",
    "deepep_normal",
    "deepep_low_latency",
]
EXCHANGE_KINDS: dict[str, tuple[str, str]] = {
    "all_to_all": ("all_to_all", "all_to_all"),
    "all_gather_reduce_scatter": ("all_gather", "reduce_scatter"),
    "all_reduce": ("all_reduce", "all_reduce"),
    "deepep_normal": ("deepep_dispatch", "deepep_combine"),
    "deepep_low_latency": ("deepep_low_latency_dispatch", "deepep_low_latency_combine"),
}
"""Primitives of dispatch and combine."""


class Communication(NamedTuple):
    """The engine's choices.

    Attributes:
        all_reduce: `nccl`; or `custom`, the engine's own kernels within a node up to a size, NCCL otherwise.
        expert_exchange: how tokens reach their experts with data-parallel attention. `all_to_all`: each token goes to
            the devices that need it. `all_gather_reduce_scatter`: all tokens go to all, results are summed where they
            belong (vLLM's default). `all_reduce`: as before, by sums over a buffer of all tokens (vLLM's former
            `naive`). `deepep_normal`, `deepep_low_latency`: DeepEP's kernels. `deepep`: the low-latency ones in steps
            without prompts, the normal ones otherwise (SGLang's `auto`).
    """

    all_reduce: AllReduce = "nccl"
    expert_exchange: ExpertExchange = "all_to_all"

    @property
    def gathers(self) -> bool:
        """Every device gets all tokens."""
        return self.expert_exchange in {"all_gather_reduce_scatter", "all_reduce"}

    def exchange(self, *, only_decodes: bool) -> str:
        """The exchange of a step, a key of `EXCHANGE_KINDS`."""
        if self.expert_exchange != "deepep":
            return self.expert_exchange
        return "deepep_low_latency" if only_decodes else "deepep_normal"

    def primitives(self) -> set[str]:
        """The primitives that dispatch and combine may be, in any step."""
        steps = (self.exchange(only_decodes=only_decodes) for only_decodes in (False, True))
        return {kind for step in steps for kind in EXCHANGE_KINDS[step]}


DEFAULT = Communication()
