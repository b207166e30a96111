"""Tiny models of every family, made on the spot with random weights; their token ids are bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

COMMON = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "initializer_range": 0.3,
}
GROUPS = {"n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}
MLA = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "num_key_value_heads": 4}
DEEPSEEK = GROUPS | MLA | {"moe_intermediate_size": 16, "n_shared_experts": 1, "first_k_dense_replace": 1}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 2.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 64,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 16},
    "olmoe": {"num_experts": 8, "num_experts_per_tok": 3},
    "qwen2_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "qwen3_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 16,
        "norm_topk_prob": True,
        "head_dim": 8,
    },
    "deepseek_v2": DEEPSEEK | {"topk_method": "group_limited_greedy", "q_lora_rank": None},
    "deepseek_v3": DEEPSEEK | {"q_lora_rank": 16, "norm_topk_prob": True},
    "gpt_oss": {
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "head_dim": 8,
        "sliding_window": 16,
        "rope_parameters": YARN,
    },
    "phimoe": {"num_local_experts": 8, "num_experts_per_tok": 2, "router_jitter_noise": 0.2},
}
TEXT = b"def capture(model, texts):\n    return [route(token) for text in texts for token in text]\n# the end\n"

Saver = Callable[..., Path]


def pytest_collection_modifyitems(items):
    """Where PyTorch is missing, the tests of this folder are skipped, with the reason."""
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        mark = pytest.mark.skip(reason=f"needs the extra `capture` ({error})")
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(mark)


@pytest.fixture(autouse=True)
def one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny models; the tests of others run beside these
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def save_model(tmp_path_factory) -> Saver:
    """A function that saves a random model of a family, and returns its folder; the same for the same arguments."""
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()

    def save(family: str, seed: int = 0, **changes: Any) -> Path:
        torch.manual_seed(seed)
        config = transformers.AutoConfig.for_model(family, **(COMMON | CONFIGS.get(family, {}) | changes))
        model = transformers.AutoModelForCausalLM.from_config(config)
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("gate.weight", "router.weight", "router.bias", "e_score_correction_bias", "sinks")):
                tensor.data.normal_()
        folder = tmp_path_factory.mktemp(family) / family
        model.save_pretrained(folder)
        return Path(folder)

    return save


@pytest.fixture(scope="session", params=CONFIGS)
def family(request):
    return request.param


@pytest.fixture(scope="session")
def folder(family, save_model):
    """A model of each family in turn."""
    return save_model(family)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT)
    return path
