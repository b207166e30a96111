"""How a model is run while it is recorded."""

from dataclasses import dataclass

from moesim.errors import InputError

DTYPES = ("auto", "float32", "bfloat16", "float16")
BYTES = "bytes"
"""Name of the tokenizer that takes each byte of a text as one token id."""


@dataclass(frozen=True)
class CaptureSettings:
    """How texts are cut into requests, and how the model is run over them.

    Args:
        prompt_tokens: longest prompt; a longer text becomes several requests.
        decode_tokens: decode steps per request, each on a token drawn from the model's own distribution; an end token
            does not stop it.
        requests: take so many of the requests, at equal distances; None: all.
        batch: requests of equal length that run together; what runs together is written together.
        chunk_tokens: prompt tokens per forward pass; the memory of attention grows with it.
        temperature: of the draw of tokens; 0 takes the likeliest.
        seed: of the draw of tokens.
        dtype: `auto` (what the model's files hold), float32, bfloat16 or float16.
        device: of torch, such as cpu, cuda or cuda:1.
        tokenizer: folder or name of the tokenizer, or `bytes`; None: that of the model.
        attention_every: attention is recorded at every so many prompt positions, and at all decode steps.
        sink_keys: first positions of a request whose attention mass is the sink's.
        local_keys: last positions, the query's own included, whose attention mass is local.

    Raises:
        InputError: a value out of its range.
    """

    prompt_tokens: int = 512
    decode_tokens: int = 0
    requests: int | None = None
    batch: int = 8
    chunk_tokens: int = 256
    temperature: float = 1.0
    seed: int = 0
    dtype: str = "auto"
    device: str = "cpu"
    tokenizer: str | None = None
    attention_every: int = 16
    sink_keys: int = 4
    local_keys: int = 64

    def __post_init__(self) -> None:
        least_one = ("prompt_tokens", "requests", "batch", "chunk_tokens", "attention_every", "sink_keys", "local_keys")
        for name in least_one:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(name, "must be >= 1", value)
        for name in ("decode_tokens", "temperature", "seed"):
            if not getattr(self, name) >= 0:
                raise InputError(name, "must be >= 0", getattr(self, name))
        if self.dtype not in DTYPES:
            raise InputError("dtype", f"must be one of {', '.join(DTYPES)}", self.dtype)
