"""The same problems solved by torch, that is, by cuBLAS, CUTLASS and FlashAttention. torch is no dependency."""

from collections.abc import Callable
from importlib import import_module
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray

from moesim.hw_models.measure.attention_problems import DecodeAttention, PrefillAttention
from moesim.hw_models.measure.benchmark import Benchmark, Buffers, CannotBeMeasuredError, P_co
from moesim.hw_models.measure.matrix_problems import ExpertFfn, Gemm, GroupedGemm
from moesim.hw_models.measure.memory_problems import Copy
from moesim.hw_models.measure.problem import Inputs, Problem

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def torch_benchmark(problem: Problem, device: str = "cuda") -> Benchmark | None:
    """How torch solves `problem`; None where it has nothing of its own for it."""
    kind = _SOLVERS.get(type(problem))
    return None if kind is None else kind(problem, device)


class TorchBenchmark(Generic[P_co]):
    """Base of torch's benchmarks.

    Args:
        problem: what to compute.
        device: `cuda`; `cpu` serves tests.

    Raises:
        ImportError: torch is not installed.
    """

    implementation = "torch"
    kernels_per_launch = 16

    def __init__(self, problem: P_co, device: str = "cuda") -> None:
        self.problem = problem
        self._torch: Any = import_module("torch")
        self._device = device

    def result(self, buffers: Buffers) -> NDArray[Any]:
        """The buffer `out` as float32."""
        copied: NDArray[Any] = buffers["out"].float().cpu().numpy()
        return copied

    def _array(self, values: NDArray[Any]) -> Any:
        """A tensor in the format of the problem; integers stay integers."""
        dtype = getattr(self._torch, _DTYPES[self.problem.dtype])
        tensor = self._torch.from_numpy(np.ascontiguousarray(values)).to(self._device)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    def _empty(self, *shape: int) -> Any:
        dtype = getattr(self._torch, _DTYPES[self.problem.dtype])
        return self._torch.empty(shape, dtype=dtype, device=self._device)


class TorchCopy(TorchBenchmark[Copy]):
    """Tensor.copy_."""

    def make_buffers(self, inputs: Inputs) -> Buffers:
        """Source and destination."""
        return {"a": self._array(inputs["a"]), "out": self._empty(self.problem.elements)}

    def launch(self, buffers: Buffers) -> None:
        """One copy."""
        buffers["out"].copy_(buffers["a"])


class TorchGemm(TorchBenchmark[Gemm]):
    """torch.mm, the right operand stored as engines store weights: [outputs, inputs]."""

    def make_buffers(self, inputs: Inputs) -> Buffers:
        """Operands and result."""
        out = self._empty(self.problem.m, self.problem.n)
        return {"a": self._array(inputs["a"]), "b": self._array(inputs["b"].T).T, "out": out}

    def launch(self, buffers: Buffers) -> None:
        """One product."""
        self._torch.mm(buffers["a"], buffers["b"], out=buffers["out"])


class TorchGroupedGemm(TorchBenchmark[GroupedGemm]):
    """torch's grouped product, for bf16."""

    def make_buffers(self, inputs: Inputs) -> Buffers:
        """Operands, one past the last row of each expert; the result is allocated by torch."""
        ends = np.cumsum(self.problem.expert_tokens).astype(np.int32)
        b = self._array(np.swapaxes(inputs["b"], 1, 2)).transpose(1, 2)
        return {"a": self._array(inputs["a"]), "b": b, "ends": self._array(ends), "out": None}

    def launch(self, buffers: Buffers) -> None:
        """One grouped product."""
        buffers["out"] = grouped_product(self._torch)(buffers["a"], buffers["b"], offs=buffers["ends"])


class TorchExpertFfn(TorchBenchmark[ExpertFfn]):
    """Sort, gather, grouped product, activation, grouped product, weighted sum, as eager torch runs them."""

    def make_buffers(self, inputs: Inputs) -> Buffers:
        """Tokens, ids, weights, matrices."""
        weights = self._array(inputs["weights"])
        matrices = {name: self._array(np.swapaxes(inputs[name], 1, 2)).transpose(1, 2) for name in ("up", "down")}
        ids = self._array(inputs["ids"].astype(np.int64))
        return {"x": self._array(inputs["x"]), "ids": ids, "weights": weights, "out": None, **matrices}

    def launch(self, buffers: Buffers) -> None:
        """A dozen kernels."""
        torch, problem, product = self._torch, self.problem, grouped_product(self._torch)
        chosen = buffers["ids"].reshape(-1)
        order = torch.argsort(chosen, stable=True)
        # Unlike bincount, histc does not make the host wait for the GPU.
        counts = torch.histc(chosen.float(), bins=problem.experts, min=0, max=problem.experts - 1)
        ends = counts.cumsum(0).to(torch.int32)
        gathered = buffers["x"][order // problem.top_k]
        gate, up = product(gathered, buffers["up"], offs=ends).chunk(2, dim=-1)
        down = product(torch.nn.functional.silu(gate) * up, buffers["down"], offs=ends)
        position = torch.empty_like(order)
        position[order] = torch.arange(len(order), device=order.device)
        choices = down[position].view(problem.tokens, problem.top_k, problem.hidden)
        buffers["out"] = torch.bmm(buffers["weights"][:, None], choices)[:, 0]


class TorchDecodeAttention(TorchBenchmark[DecodeAttention]):
    """scaled_dot_product_attention over a cache without pages; sequences of one length only."""

    def make_buffers(self, inputs: Inputs) -> Buffers:
        """Queries, and the pages put together to [sequence, KV head, token, head_dim]."""
        problem, lengths = self.problem, set(self.problem.context_tokens)
        if len(lengths) > 1:
            raise CannotBeMeasuredError("torch attends to contexts of equal length only")
        pages = inputs["page_table"]
        length = lengths.pop()
        buffers = {"query": self._array(inputs["query"])[:, :, None], "out": None}
        for name in ("keys", "values"):
            whole = inputs[name][pages].reshape(len(pages), -1, problem.kv_heads, problem.head_dim)[:, :length]
            buffers[name] = self._array(whole.transpose(0, 2, 1, 3))
        return buffers

    def launch(self, buffers: Buffers) -> None:
        """Attention of one new token per sequence."""
        attend = self._torch.nn.functional.scaled_dot_product_attention
        whole = attend(buffers["query"], buffers["keys"], buffers["values"], enable_gqa=True)
        buffers["out"] = whole[:, :, 0]


class TorchPrefillAttention(TorchBenchmark[PrefillAttention]):
    """Causal scaled_dot_product_attention."""

    def make_buffers(self, inputs: Inputs) -> Buffers:
        """Queries, keys and values."""
        return {name: self._array(array) for name, array in inputs.items()} | {"out": None}

    def launch(self, buffers: Buffers) -> None:
        """Attention of all prompts."""
        attend = self._torch.nn.functional.scaled_dot_product_attention
        cache = buffers["keys"], buffers["values"]
        buffers["out"] = attend(buffers["query"], *cache, is_causal=True, enable_gqa=True)

    def result(self, buffers: Buffers) -> NDArray[Any]:
        """The result as float32[(sequence, head), token, head_dim]."""
        copied: NDArray[Any] = buffers["out"].float().cpu().numpy()
        return copied.reshape(self.problem.output_rows, *copied.shape[2:])


def grouped_product(torch: Any) -> Callable[..., Any]:
    """The grouped product, which is public from torch 2.10 on.

    Raises:
        CannotBeMeasuredError: torch is older than 2.8.
    """
    product = getattr(torch.nn.functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
    if product is None:
        raise CannotBeMeasuredError("torch has no grouped product before version 2.8")
    found: Callable[..., Any] = product
    return found


_SOLVERS: dict[type[Problem], Any] = {
    Copy: TorchCopy,
    Gemm: TorchGemm,
    GroupedGemm: TorchGroupedGemm,
    ExpertFfn: TorchExpertFfn,
    DecodeAttention: TorchDecodeAttention,
    PrefillAttention: TorchPrefillAttention,
}
