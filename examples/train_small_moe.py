"""Train a small Mixture-of-Experts language model on this machine, then record its routing and attention.

    python examples/train_small_moe.py --out out/small-moe

Needs `pip install 'moesim[capture]'` and nothing else: the text is the source code of Python's standard library, or
the files given with `--text`. The model is an OLMoE (Muennighoff et al. 2024, arXiv:2409.02060) of 8 layers with 32
experts each, 4 per token, trained with that paper's losses: next token, load balancing per layer, router z-loss.

The folder then holds `model` (a Hugging Face folder with tokenizer), `loss.csv`, `loss.png`, `training.json`,
`valid.txt` (the text that was held out, which is what is captured), `trace.parquet`, `attention.parquet`, and
`small-moe.json`: losses and the statistics of the traces. They ship with moesim as the routing `small-moe`.
"""

import argparse
import csv
import json
import math
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

from moesim.workloads.capture.run import capture
from moesim.workloads.capture.settings import CaptureSettings
from moesim.workloads.capture.summary import summarize_capture

NAME = "small-moe"
END_OF_TEXT = "<|endoftext|>"
VALID_SHARE = 0.05
BALANCE_WEIGHT, Z_WEIGHT = 0.01, 0.001
"""Of the losses of the router: OLMoE (arXiv:2409.02060), table of hyperparameters."""


@dataclass(frozen=True)
class Training:
    """How the model is trained; the learning rate warms up linearly and then falls as a cosine."""

    steps: int = 4000
    max_minutes: float = 20.0
    batch: int = 4
    tokens: int = 256
    learning_rate: float = 4e-3
    warmup: float = 0.03
    weight_decay: float = 0.1
    text_megabytes: float = 24.0
    seed: int = 0


@dataclass(frozen=True)
class Corpus:
    """Token ids of the text to learn, and of the text that is held out."""

    train: NDArray[np.int32]
    valid: NDArray[np.int32]
    valid_text: str


def main() -> None:
    """Make the model, then capture."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not arguments.capture_only:
        make(arguments)
    record(arguments.out, arguments.requests)


def make(arguments: argparse.Namespace) -> None:
    """Read the text, make a tokenizer, train, save, draw."""
    out: Path = arguments.out
    torch.manual_seed(arguments.seed)
    training = Training(steps=arguments.steps, max_minutes=arguments.max_minutes, seed=arguments.seed)
    train_texts, valid_texts = split_texts(read_texts(arguments.text, training), training.seed)
    tokenizer = make_tokenizer(train_texts, vocabulary=arguments.vocabulary)
    corpus = encode(tokenizer, train_texts, valid_texts)
    (out / "valid.txt").write_text(corpus.valid_text, encoding="utf-8")
    print(f"{len(corpus.train):,} tokens to learn, {len(corpus.valid):,} held out")
    model = make_model(tokenizer.vocab_size)
    rows = train(model, corpus, training)
    model.save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    foreign = foreign_routing_loss(model, valid_batches(corpus, training))
    save_losses(out, rows, corpus, training, tokenizer.vocab_size, foreign)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/small-moe"))
    parser.add_argument("--text", type=Path, nargs="*", help="files to learn; by default Python's standard library")
    parser.add_argument("--steps", type=int, default=Training.steps)
    parser.add_argument("--max-minutes", type=float, default=Training.max_minutes, help="of training; stop there")
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--requests", type=int, default=192, help="requests to capture")
    parser.add_argument("--capture-only", action="store_true", help="of the model that an earlier run left in --out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def read_texts(paths: list[Path] | None, training: Training) -> list[str]:
    """The texts of `paths`, or of the standard library, in an order that depends on the seed only, up to a size."""
    if not paths:
        library = Path(sysconfig.get_paths()["stdlib"])
        paths = sorted(path for path in library.rglob("*.py") if "site-packages" not in path.parts)
    order = np.random.default_rng(training.seed).permutation(len(paths))
    texts: list[str] = []
    left = training.text_megabytes * 1e6
    for path in (paths[index] for index in order):
        text = path.read_text(encoding="utf-8", errors="ignore")
        if text.strip() and left > 0:
            texts.append(text)
            left -= len(text)
    return texts


def split_texts(texts: list[str], seed: int) -> tuple[list[str], list[str]]:
    """Whole files to learn, and whole files to hold out."""
    held_out = np.random.default_rng([seed, 1]).random(len(texts)) < VALID_SHARE
    if held_out.all() or not held_out.any():  # few files: hold out the end of each
        cuts = [math.ceil(len(text) * (1 - VALID_SHARE)) for text in texts]
        pieces = list(zip(texts, cuts, strict=True))
        return [text[:cut] for text, cut in pieces], [text[cut:] for text, cut in pieces]
    pairs = list(zip(texts, held_out, strict=True))
    return [text for text, held in pairs if not held], [text for text, held in pairs if held]


def make_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE of some megabytes of `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts[:200], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT)


def encode(tokenizer: PreTrainedTokenizerFast, train_texts: list[str], valid_texts: list[str]) -> Corpus:
    """Texts as one stream of ids each, an end token after every file."""
    streams = []
    for texts in (train_texts, valid_texts):
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        streams.append(np.concatenate([np.array([*text, tokenizer.eos_token_id], np.int32) for text in ids]))
    return Corpus(streams[0], streams[1], "".join(valid_texts))


def make_model(vocabulary: int) -> OlmoeForCausalLM:
    """An OLMoE of 8 layers, 32 experts, top 4: 7.4 million parameters, 1.9 million of them active per token."""
    config = OlmoeConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_experts=32,
        num_experts_per_tok=4,
        initializer_range=0.05,
        max_position_embeddings=2048,
        eos_token_id=0,
        pad_token_id=0,
    )
    return OlmoeForCausalLM._from_config(config, experts_implementation="grouped_mm")  # noqa: SLF001


def train(model: OlmoeForCausalLM, corpus: Corpus, training: Training) -> list[dict[str, float]]:
    """Train `model` in place; returns a row of losses now and then."""
    optimizer = torch.optim.AdamW(parameter_groups(model, training), lr=training.learning_rate, betas=(0.9, 0.95))
    logits: list[torch.Tensor] = []  # of the routers, in the order of layers
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda _module, _inputs, output: logits.append(output[0]))
        for layer in model.model.layers
    ]
    valid = valid_batches(corpus, training)
    started, rows = time.perf_counter(), []
    for step, ids in enumerate(batches(corpus.train, training)):
        minutes = (time.perf_counter() - started) / 60
        progress = max(step / training.steps, minutes / training.max_minutes)
        if step % 200 == 0 or progress >= 1:
            rows.append(measure(model, valid, step * training.batch * training.tokens, minutes, logits))
            print("  ".join(f"{key} {value:,.4g}" for key, value in rows[-1].items()), flush=True)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * rate(progress, training.warmup)
        logits.clear()
        loss = token_loss(model, ids) + router_loss(logits, model.config.num_experts_per_tok)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    for hook in hooks:
        hook.remove()
    return rows


def parameter_groups(model: OlmoeForCausalLM, training: Training) -> list[dict[str, Any]]:
    """Weight decay for matrices only."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]


def rate(progress: float, warmup: float) -> float:
    """Share of the learning rate when the share `progress` of the training is over."""
    return min(progress / warmup + 0.01, 0.05 + 0.95 * (1 + math.cos(math.pi * progress)) / 2, 1.0)


def batches(ids: NDArray[np.int32], training: Training) -> Iterator[torch.Tensor]:
    """Windows of the text at random places, int64[batch, tokens + 1], for ever."""
    rng = np.random.default_rng([training.seed, 2])
    while True:
        starts = rng.integers(0, len(ids) - training.tokens - 1, training.batch)
        windows = starts[:, np.newaxis] + np.arange(training.tokens + 1)
        yield torch.from_numpy(ids[windows].astype(np.int64))


def valid_batches(corpus: Corpus, training: Training) -> torch.Tensor:
    """Windows at equal distances of the held-out text, int64[window, tokens + 1]."""
    starts = np.linspace(0, len(corpus.valid) - training.tokens - 2, 64).astype(np.int64)
    return torch.from_numpy(corpus.valid[starts[:, np.newaxis] + np.arange(training.tokens + 1)].astype(np.int64))


def token_loss(model: OlmoeForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the next token, nats."""
    predicted = model(input_ids=ids[:, :-1], use_cache=False).logits
    return functional.cross_entropy(predicted.flatten(0, 1), ids[:, 1:].flatten())


def router_loss(logits: list[torch.Tensor], top_k: int) -> torch.Tensor:
    """Load balancing of every layer by itself (Fedus et al. 2021, equation 4) and z-loss (Zoph et al. 2022)."""
    total = torch.zeros(())
    for layer in logits:
        probability = layer.softmax(-1)
        experts = layer.shape[-1]
        chosen = torch.bincount(probability.topk(top_k).indices.flatten(), minlength=experts) / len(layer)
        balance = experts * (chosen / top_k * probability.mean(0)).sum()
        total = total + BALANCE_WEIGHT * balance + Z_WEIGHT * layer.logsumexp(-1).square().mean()
    return total / len(logits)


def measure(
    model: OlmoeForCausalLM, valid: torch.Tensor, tokens: int, minutes: float, logits: list[torch.Tensor]
) -> dict[str, float]:
    """Loss on held-out text, and how unequal the load of experts is there."""
    losses, chosen = [], []
    with torch.no_grad():
        for ids in valid.split(16):
            logits.clear()
            losses.append(token_loss(model, ids).item() * len(ids))
            chosen.append(torch.stack([layer.topk(model.config.num_experts_per_tok).indices for layer in logits]))
    loads = [torch.bincount(layer.flatten(), minlength=model.config.num_experts) for layer in torch.cat(chosen, 1)]
    imbalance = np.mean([float(load.max() / load.float().mean()) for load in loads])
    return {
        "tokens": tokens,
        "minutes": round(minutes, 3),
        "valid_loss": round(sum(losses) / len(valid), 4),
        "max_over_mean_load": round(float(imbalance), 3),
    }


def foreign_routing_loss(model: OlmoeForCausalLM, valid: torch.Tensor) -> float:
    """Held-out loss when every token goes, in all layers, to the experts of another token, with their weights.

    Would all experts do the same, the loss would stay; how far it rises says how much they specialise.
    """
    order = torch.randperm(16 * (valid.shape[1] - 1), generator=torch.Generator().manual_seed(0))

    def swap(_module: Any, _inputs: Any, output: Any) -> Any:
        logits, weights, experts = output
        return logits, weights[order], experts[order]

    hooks = [layer.mlp.gate.register_forward_hook(swap) for layer in model.model.layers]
    with torch.no_grad():
        losses = [token_loss(model, ids).item() for ids in valid.split(16)]
    for hook in hooks:
        hook.remove()
    return float(np.mean(losses))


def ngram_losses(corpus: Corpus, vocabulary: int) -> dict[str, float]:
    """Held-out loss of models without context (unigram) and of one token of context (bigram), nats per token.

    The unigram counts are smoothed by one; the bigram is interpolated with the unigram by the weight, of ten, that
    suits the held-out text best, which flatters it.
    """
    unigram = np.bincount(corpus.train, minlength=vocabulary) + 1.0
    unigram /= unigram.sum()
    pairs = np.bincount(corpus.train[:-1].astype(np.int64) * vocabulary + corpus.train[1:], minlength=vocabulary**2)
    before = np.maximum(1, np.bincount(corpus.train[:-1], minlength=vocabulary))
    bigram = pairs.reshape(vocabulary, vocabulary) / before[:, np.newaxis]
    alone, follows = unigram[corpus.valid[1:]], bigram[corpus.valid[:-1], corpus.valid[1:]]
    mixed = min(-np.log(weight * follows + (1 - weight) * alone).mean() for weight in np.linspace(0.05, 0.95, 10))
    return {"unigram_loss": round(float(-np.log(alone).mean()), 4), "bigram_loss": round(float(mixed), 4)}


def save_losses(
    out: Path, rows: list[dict[str, float]], corpus: Corpus, training: Training, vocabulary: int, foreign: float
) -> None:
    """Write loss.csv, loss.png and training.json."""
    ngrams = ngram_losses(corpus, vocabulary)
    with (out / "loss.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    about = {
        "training": asdict(training),
        "train_tokens": len(corpus.train),
        "valid_tokens": len(corpus.valid),
        **ngrams,
        **{f"final_{key}": value for key, value in rows[-1].items()},
        "foreign_routing_loss": round(foreign, 4),
    }
    (out / "training.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    draw_losses(out / "loss.png", rows, ngrams)
    print(json.dumps(about, indent=2))


def draw_losses(path: Path, rows: list[dict[str, float]], ngrams: dict[str, float]) -> None:
    """The loss over tokens, beside that of models without or with little context."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    millions = [row["tokens"] / 1e6 for row in rows]
    axes.plot(millions, [row["valid_loss"] for row in rows], color="#1f5fa8", label="small MoE")
    for (name, loss), style in zip(ngrams.items(), ("--", ":"), strict=True):
        axes.axhline(loss, color="#777777", linestyle=style, label=f"{name.removesuffix('_loss')} model")
    axes.set_xlabel("tokens seen (millions)")
    axes.set_ylabel("held-out loss (nats per token)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def record(out: Path, requests: int) -> None:
    """Capture routing and attention of the held-out text, prefill and decode."""
    settings = CaptureSettings(prompt_tokens=128, decode_tokens=128, batch=16, requests=requests)
    started = time.perf_counter()
    trace, attention = out / "trace.parquet", out / "attention.parquet"
    report = capture(str(out / "model"), [out / "valid.txt"], trace, settings, attention=attention, name=NAME)
    seconds = time.perf_counter() - started
    about = json.loads((out / "training.json").read_text(encoding="utf-8"))
    about["capture"] = {"requests": report.requests, "tokens": report.tokens, "seconds": round(seconds)}
    about["statistics"] = summarize_capture(trace, attention)
    (out / f"{NAME}.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    print(f"captured {report.tokens:,} tokens of {report.requests} requests in {seconds:.0f} s")


if __name__ == "__main__":
    main()
