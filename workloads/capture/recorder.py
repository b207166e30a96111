"""Hooks on routers and attention that keep what a batch of requests did."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from moesim.errors import DataError
from moesim.workloads.attention_trace import COUNTS, MASSES
from moesim.workloads.capture.attention_statistics import attention_statistics
from moesim.workloads.capture.loading import LoadedModel
from moesim.workloads.capture.settings import CaptureSettings

_TRIPLE = 3  # logits, gate weights, expert ids: what routers return


class Recorder:
    """Records one batch of requests of equal length; a context manager that sets and removes the hooks.

    Args:
        loaded: the model.
        settings: which attention is sampled, and what counts as sink and local.
        requests: in the batch.
        prompt_tokens: of each of them.
        attention: whether to record attention.
    """

    def __init__(
        self, loaded: LoadedModel, settings: CaptureSettings, requests: int, prompt_tokens: int, *, attention: bool
    ) -> None:
        self._loaded, self._settings, self._requests = loaded, settings, requests
        tokens = prompt_tokens + settings.decode_tokens
        routed = (requests, tokens, len(loaded.routers), loaded.top_k)
        #: uint8 or uint16 [request, token, moe_layer, rank], in descending order of gate weight
        self.expert = np.zeros(routed, np.uint8 if loaded.experts <= np.iinfo(np.uint8).max + 1 else np.uint16)
        #: float16[request, token, moe_layer, rank]
        self.gate = np.zeros(routed, np.float16)
        prompt = np.arange(0, prompt_tokens, settings.attention_every)
        #: int64[sample] positions whose attention is recorded
        self.sampled = np.concatenate([prompt, np.arange(prompt_tokens, tokens)])
        #: by name of the statistic, [request, sample, layer, head]
        self.attention: dict[str, NDArray[Any]] = {}
        if attention:
            shape = (requests, len(self.sampled), len(loaded.attentions), loaded.heads)
            kinds = [(COUNTS, np.uint16 if tokens <= np.iinfo(np.uint16).max else np.uint32), (MASSES, np.float16)]
            self.attention = {name: np.zeros(shape, dtype) for names, dtype in kinds for name in names}
        self._handles: list[Any] = []
        self._start = self._stop = self._routed = 0

    def __enter__(self) -> Self:
        for layer, router in enumerate(self._loaded.routers):
            self._handles.append(router.register_forward_hook(partial(self._keep_routing, layer)))
        if self.attention:
            for layer, module in enumerate(self._loaded.attentions):
                self._handles.append(module.register_forward_hook(partial(self._keep_attention, layer)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def positions(self, start: int, stop: int) -> Iterator[None]:
        """What the model does inside the block belongs to positions `start` to `stop` of every request.

        Raises:
            DataError: the routers were passed by, as fused kernels do.
        """
        self._start, self._stop, self._routed = start, stop, 0
        yield
        if self._routed != len(self._loaded.routers):
            rule = f"must run each of its {len(self._loaded.routers)} routers once per pass (a fused kernel may not)"
            raise DataError(self._loaded.name, rule, self._routed)

    def _keep_routing(self, layer: int, router: Any, _inputs: Any, output: Any) -> None:
        if not isinstance(output, tuple) or len(output) != _TRIPLE:
            rule = f"routers must return logits, gate weights and expert ids; {type(router).__name__} of this version"
            raise DataError(self._loaded.name, f"{rule} of transformers does not")
        _, weights, experts = output
        order = weights.argsort(dim=-1, descending=True, stable=True)
        shape = (self._requests, self._stop - self._start, self._loaded.top_k)
        place = (slice(None), slice(self._start, self._stop), layer)
        self.gate[place] = weights.gather(-1, order).float().cpu().numpy().reshape(shape)
        self.expert[place] = experts.gather(-1, order).cpu().numpy().reshape(shape)
        self._routed += 1

    def _keep_attention(self, layer: int, module: Any, _inputs: Any, output: Any) -> None:
        import torch

        weights = output[1]
        if weights is None:
            raise DataError(
                self._loaded.name, "attention must return its weights; this version of transformers does not"
            )
        rows = np.flatnonzero((self.sampled >= self._start) & (self.sampled < self._stop))
        if not rows.size:
            return
        query = torch.from_numpy(self.sampled[rows]).to(weights.device)
        keys = weights.shape[-1]
        statistics = attention_statistics(
            weights[:, :, query - self._start],
            query,
            torch.arange(self._stop - keys, self._stop, device=weights.device),
            sink_keys=self._settings.sink_keys,
            local_keys=self._settings.local_keys,
            off_mass=hasattr(module, "sinks"),
        )
        for name, values in statistics.items():
            self.attention[name][:, rows, layer] = values.transpose(1, 2).cpu().numpy()
