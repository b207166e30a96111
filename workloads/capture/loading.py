"""Models and tokenizers of Hugging Face folders, with errors that say what is wrong."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.errors import DataError, InputError
from moesim.workloads.capture.settings import BYTES, CaptureSettings

ROUTERS = {
    "mixtral": "MixtralTopKRouter",
    "olmoe": "OlmoeTopKRouter",
    "qwen2_moe": "Qwen2MoeTopKRouter",
    "qwen3_moe": "Qwen3MoeTopKRouter",
    "deepseek_v2": "DeepseekV2TopkRouter",
    "deepseek_v3": "DeepseekV3TopkRouter",
    "gpt_oss": "GptOssTopKRouter",
    "phimoe": "PhimoeTopKRouter",
}
"""Class of the routers by `model_type` in transformers 5; they return (logits, gate weights, expert ids)."""

_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model that is ready to run, and what its recording needs to know.

    Args:
        name: of the model, for the trace.
        model: the transformers model, in evaluation mode on its device.
        routers: modules of the routers, in the order of layers.
        attentions: modules of attention, in the order of layers.
        experts: routed experts per layer.
        top_k: experts per token.
        heads: attention heads per layer.
        vocabulary: token ids.
        max_tokens: longest context.
        window_tokens: sliding window of every attention layer, 0 for none.
    """

    name: str
    model: Any
    routers: tuple[Any, ...]
    attentions: tuple[Any, ...]
    experts: int
    top_k: int
    heads: int
    vocabulary: int
    max_tokens: int
    window_tokens: tuple[int, ...]

    def fingerprint(self) -> str:
        """A hash of the routers' and the embedding's weights: another training gives another."""
        digest = hashlib.sha256()
        for module in (*self.routers, self.model.get_input_embeddings()):
            for tensor in module.state_dict().values():
                digest.update(tensor.detach().to("cpu").float().numpy().tobytes())
        return digest.hexdigest()


def load_model(reference: str, settings: CaptureSettings, *, attention: bool, name: str | None = None) -> LoadedModel:
    """The model in a folder, or of a name on the hub.

    Args:
        reference: folder with config.json and weights, or name on the hub, such as allenai/OLMoE-1B-7B-0924.
        settings: `dtype` and `device`.
        attention: whether attention weights are wanted; they are computed without a fused kernel then.
        name: of the model; by default the name of the folder or on the hub.

    Raises:
        InputError: PyTorch or transformers is missing, or the device.
        DataError: no such model, an incomplete one, no MoE, or a family whose routers are not known.
    """
    _, transformers = import_torch()
    config = _config(reference, transformers)
    family = _check_family(reference, config)
    implementation = {"attn_implementation": "eager"} if attention else {}
    with _quiet(transformers):
        try:
            model, info = transformers.AutoModelForCausalLM.from_pretrained(
                reference, dtype=settings.dtype, output_loading_info=True, use_safetensors=True, **implementation
            )
        except (OSError, ValueError, RuntimeError, ImportError, KeyError) as error:
            raise DataError(reference, f"the model cannot be loaded ({_first_line(error)})") from None
    if info["missing_keys"] or info["mismatched_keys"]:
        lacking = sorted(map(str, info["missing_keys"] or info["mismatched_keys"]))
        raise DataError(reference, f"the weights must be complete, {len(lacking)} lack or do not fit", lacking[0])
    try:
        model = model.to(settings.device).eval()
    except (RuntimeError, AssertionError) as error:  # torch's errors of devices that are not there
        raise InputError("device", f"cannot be used ({_first_line(error)})", settings.device) from None
    return describe(model, family, name or _name(reference))


def describe(model: Any, family: str, name: str) -> LoadedModel:
    """A model in memory as a `LoadedModel`.

    Raises:
        DataError: no routers of the expected kind, which another version of transformers can bring about.
    """
    import transformers

    routers = tuple(module for module in model.modules() if type(module).__name__ == ROUTERS[family])
    if not routers:
        rule = f"must have routers of class {ROUTERS[family]}; transformers {transformers.__version__} built none"
        raise DataError(name, rule)
    attentions = tuple(module for module in model.modules() if _is_attention(module))
    config = model.config
    return LoadedModel(
        name=name,
        model=model,
        routers=routers,
        attentions=attentions,
        experts=int(routers[0].num_experts),
        top_k=int(routers[0].top_k),
        heads=int(config.num_attention_heads),
        vocabulary=int(config.vocab_size),
        max_tokens=int(config.max_position_embeddings),
        window_tokens=_windows(config, len(attentions)),
    )


def load_tokenizer(reference: str, settings: CaptureSettings) -> Any:
    """The tokenizer of the settings, or that of the model; None for bytes.

    Raises:
        DataError: there is none.
    """
    if settings.tokenizer == BYTES:
        return None
    _, transformers = import_torch()
    source = settings.tokenizer or reference
    rule = f"has no tokenizer that can be loaded; name one with --tokenizer, or --tokenizer {BYTES} for byte ids"
    folder = Path(source)
    if folder.is_dir() and not any(folder.glob("*token*")) and not any(folder.glob("*vocab*")):
        raise DataError(source, rule)  # transformers would build an empty one
    with _quiet(transformers):
        try:
            return transformers.AutoTokenizer.from_pretrained(source)
        except Exception as error:  # noqa: BLE001  tokenizers raise what they like
            raise DataError(source, f"{rule} ({_first_line(error)})") from None


def import_torch() -> tuple[Any, Any]:
    """The modules torch and transformers.

    Raises:
        InputError: one of them is not installed.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        rule = f"needs PyTorch and transformers (pip install 'moesim[capture]'): {_first_line(error)}"
        raise InputError("capture", rule) from None
    return torch, transformers


def _config(reference: str, transformers: Any) -> Any:
    folder = Path(reference)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise DataError(reference, "must be a folder with config.json")
    if folder.is_file() or (not folder.exists() and not _HUB_NAME.fullmatch(reference)):
        raise DataError(reference, "no such folder, and no name of the form owner/model")
    with _quiet(transformers):
        try:
            return transformers.AutoConfig.from_pretrained(reference)
        except Exception as error:  # noqa: BLE001  of the hub's client, JSON, checks of fields
            raise DataError(reference, f"the model's config.json cannot be loaded ({_first_line(error)})") from None


def _check_family(reference: str, config: Any) -> str:
    family = str(config.model_type)
    if family in ROUTERS:
        return family
    if not any(getattr(config, count, None) for count in _EXPERT_COUNTS):
        raise DataError(reference, "must be a Mixture-of-Experts model; it has no experts", family)
    raise DataError(reference, f"the family must be one of {', '.join(ROUTERS)}", family)


def _is_attention(module: Any) -> bool:
    return type(module).__name__.endswith("Attention") and hasattr(module, "layer_idx")


def _windows(config: Any, layers: int) -> tuple[int, ...]:
    """Sliding window of every layer, 0 for none."""
    window = int(getattr(config, "sliding_window", None) or 0)
    kinds = getattr(config, "layer_types", None)
    if kinds:
        return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)
    return (window if getattr(config, "use_sliding_window", True) else 0,) * layers


def _name(reference: str) -> str:
    folder = Path(reference)
    return folder.resolve().name if folder.is_dir() else reference


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the progress bars and warnings of transformers, which would break ours."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
