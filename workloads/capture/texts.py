"""Texts cut into the prompts of requests."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import DataError
from moesim.workloads.capture.settings import CaptureSettings

_BLOCK = 1 << 20
"""Characters that are tokenised at once, up to the end of a line."""


@dataclass(frozen=True, eq=False)
class Prompts:
    """Prompts in the order of requests, the longest first; they share the token ids of their texts.

    Args:
        names: text and first token of each request.
        groups: text of each request.
        ids: int32[token] per request.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    ids: tuple[NDArray[np.int32], ...]

    def __len__(self) -> int:
        return len(self.ids)

    def batches(self, size: int) -> list[range]:
        """Consecutive requests of equal length, at most `size` together."""
        lengths = [len(ids) for ids in self.ids]
        bounds = [0]
        for request in range(1, len(self)):
            if lengths[request] != lengths[request - 1] or request - bounds[-1] == size:
                bounds.append(request)
        return [range(start, stop) for start, stop in zip(bounds, [*bounds[1:], len(self)], strict=True)]

    def fingerprint(self) -> str:
        """A hash of all token ids and names."""
        digest = hashlib.sha256("\0".join(self.names).encode())
        for ids in self.ids:
            digest.update(ids.tobytes())
        return digest.hexdigest()


def read_prompts(paths: Sequence[Path], tokenizer: Any, vocabulary: int, settings: CaptureSettings) -> Prompts:
    """Tokenise the texts and cut each into prompts.

    Args:
        paths: files of UTF-8 text; with a tokenizer of bytes, any files.
        tokenizer: of transformers, or None to take bytes for ids.
        vocabulary: token ids of the model.
        settings: `prompt_tokens` and `requests`.

    Raises:
        DataError: a file is missing, empty or no UTF-8 text, or gives an id that the model does not have.
    """
    pieces = [piece for path in paths for piece in _pieces(path, tokenizer, vocabulary, settings.prompt_tokens)]
    if settings.requests is not None and settings.requests < len(pieces):
        chosen = np.linspace(0, len(pieces), settings.requests, endpoint=False).astype(np.int64)
        pieces = [pieces[index] for index in chosen]
    pieces.sort(key=lambda piece: -len(piece[2]))  # stable: in the order of the texts within a length
    names, groups, ids = zip(*pieces, strict=True)
    return Prompts(names, groups, ids)


def _pieces(path: Path, tokenizer: Any, vocabulary: int, length: int) -> Iterator[tuple[str, str, NDArray[np.int32]]]:
    ids = np.concatenate([np.empty(0, np.int32), *_ids(path, tokenizer)])
    if ids.size == 0:
        raise DataError(str(path), "must not be empty")
    if ids.max() >= vocabulary:
        what = "bytes" if tokenizer is None else "the tokenizer"
        raise DataError(str(path), f"token ids must be below {vocabulary}, the model's; {what} gave", int(ids.max()))
    for start in range(0, len(ids), length):
        yield f"{path}:{start}", str(path), ids[start : start + length]


def _ids(path: Path, tokenizer: Any) -> Iterator[NDArray[np.int32]]:
    if not path.is_file():
        raise DataError(str(path), "no such file")
    try:
        if tokenizer is None:
            yield np.fromfile(path, np.uint8).astype(np.int32)
            return
        with path.open(encoding="utf-8") as file:
            while lines := file.readlines(_BLOCK):
                yield np.array(tokenizer("".join(lines), add_special_tokens=False)["input_ids"], np.int32)
    except OSError as error:
        raise DataError(str(path), f"cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise DataError(str(path), f"must be UTF-8 text ({error.reason} at byte {error.start})") from None
