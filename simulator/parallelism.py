"""How one replica's model is cut over devices, and whether the cuts divide.

A replica is `pp` pipeline stages of `dp * tp` devices each; a stage holds consecutive layers. Within a stage, attention
and dense layers are tensor parallel within groups of `tp` devices, and data parallel over `dp` groups. The same devices
hold the stage's routed experts as `ep` groups of `moe_tp` tensor-parallel shards. Device `d` of a stage belongs to
data-parallel rank `d // tp` and expert-parallel rank `d // moe_tp`.
"""

from collections.abc import Iterator
from typing import Self

from pydantic import Field, PositiveInt, model_validator

from moesim.configs.loader import Config
from moesim.errors import ConfigError
from moesim.workloads.models import DenseFFN, GroupedQueryAttention, Layer, Mamba, Model


class Parallelism(Config):
    """Degrees of parallelism of one replica."""

    tp: PositiveInt = Field(1, description="tensor parallelism of attention, dense and shared-expert layers")
    dp: PositiveInt = Field(1, description="data parallelism of attention: ranks with their own requests")
    ep: PositiveInt = Field(1, description="expert parallelism: groups of devices that share the routed experts out")
    pp: PositiveInt = Field(1, description="pipeline parallelism: stages that hold consecutive layers")

    @model_validator(mode="after")
    def _experts_divide(self) -> Self:
        if self.stage_devices % self.ep:
            raise ValueError(f"`ep` must divide dp * tp = {self.stage_devices} devices, got ep = {self.ep}")
        return self

    @property
    def devices(self) -> int:
        """Devices of the replica."""
        return self.pp * self.stage_devices

    @property
    def stage_devices(self) -> int:
        """Devices of one pipeline stage."""
        return self.dp * self.tp

    @property
    def moe_tp(self) -> int:
        """Tensor parallelism within each group of experts."""
        return self.stage_devices // self.ep

    def stage_layers(self, layers: int) -> list[range]:
        """Layers of each stage: equally many, and those left over on the last stages but one.

        The last stage has the output head beside its layers (vLLM 0.10, `get_pp_indices`).
        """
        sizes = [layers // self.pp] * self.pp
        for stage in range(layers % self.pp):
            sizes[-2 - stage] += 1
        ends = [sum(sizes[: stage + 1]) for stage in range(self.pp)]
        return [range(end - size, end) for size, end in zip(sizes, ends, strict=True)]


def check_parallelism(model: Model, parallelism: Parallelism, place: str) -> None:
    """Refuse cuts that do not divide the model.

    Raises:
        ConfigError: every rule that is broken, a line each.
    """
    errors = [ConfigError(place, rule) for rule in dict.fromkeys(_broken_rules(model, parallelism))]
    if errors:
        raise ConfigError.join(errors)


def _broken_rules(model: Model, parallelism: Parallelism) -> Iterator[str]:
    if parallelism.pp > len(model.layers):
        yield f"pp must be at most the {len(model.layers)} layers of {model.name}, got pp = {parallelism.pp}"
    for layer in model.layers:
        yield from _attention_rules(layer, parallelism.tp)
        yield from _ffn_rules(layer, parallelism)
    if not model.moe_layers and parallelism.ep > 1:
        yield f"expert parallelism needs routed experts, but {model.name} is dense (ep = {parallelism.ep})"


def _attention_rules(layer: Layer, tp: int) -> Iterator[str]:
    attention = layer.attention
    if isinstance(attention, Mamba):
        if tp > 1:
            yield f"tensor parallelism of Mamba layers, with an all-reduce inside, is not supported, got tp = {tp}"
        return
    if attention.heads % tp:
        yield f"tp must divide the {attention.heads} attention heads, got tp = {tp}"
    if isinstance(attention, GroupedQueryAttention) and max(attention.kv_heads, tp) % min(attention.kv_heads, tp):
        yield f"tp must divide the {attention.kv_heads} KV heads or be a multiple of them, got tp = {tp}"


def _ffn_rules(layer: Layer, parallelism: Parallelism) -> Iterator[str]:
    ffn, tp, moe_tp = layer.ffn, parallelism.tp, parallelism.moe_tp
    if isinstance(ffn, DenseFFN):
        if ffn.intermediate % tp:
            yield f"tp must divide the dense FFN's width {ffn.intermediate}, got tp = {tp}"
        return
    if ffn.experts % parallelism.ep:
        yield f"ep must divide the {ffn.experts} experts, got ep = {parallelism.ep}"
    if ffn.intermediate % moe_tp:
        yield f"dp * tp / ep must divide the expert width {ffn.intermediate}, got {moe_tp}"
    if ffn.shared_intermediate % tp:
        yield f"tp must divide the shared experts' width {ffn.shared_intermediate}, got tp = {tp}"
