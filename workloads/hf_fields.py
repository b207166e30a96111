"""Fields of a Hugging Face `config.json`, read with their place, so that errors name file, line and field."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from moesim.configs.documents import Document, KeyPath
from moesim.errors import ConfigError

Block = dict[str, object]
"""A mapping that will be validated as a class of `moesim.workloads.models`."""

_ALIASES: Mapping[str, tuple[str, ...]] = {
    "experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "top_k": ("num_experts_per_tok", "experts_per_token", "top_k_experts"),
    "dtype": ("torch_dtype", "dtype"),
}
"""Fields that families name differently; other fields go by their own name."""


@dataclass(frozen=True)
class Fields:
    """The fields of a config.json; null counts as absent, as in transformers."""

    document: Document

    def get(self, name: str) -> object:
        """Value of a field, None when it is absent or null."""
        data = self.document.data
        return next((data[key] for key in self._keys(name) if data.get(key) is not None), None)

    def is_stated(self, name: str) -> bool:
        """Whether a field is there, be it null."""
        return any(key in self.document.data for key in self._keys(name))

    def count(self, name: str, default: int | None = None, minimum: int = 1) -> int:
        """A whole number of at least `minimum`; required when there is no default."""
        value = self.get(name)
        if value is None and default is not None:
            return default
        if value is None:
            raise self.error(name, "required")
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise self.error(name, f"must be a whole number >= {minimum}", value)
        return value

    def flag(self, name: str) -> bool:
        """Whether a field is there and neither false nor zero."""
        return bool(self.get(name))

    def items(self, name: str) -> list[object]:
        """A list; empty when the field is absent."""
        value = self.get(name)
        if value is not None and not isinstance(value, list):
            raise self.error(name, "must be a list", value)
        return value or []

    def choice(self, name: str, allowed: Collection[str], unsupported: str, default: str | None = None) -> str:
        """One of the words `allowed`; the error says that `unsupported` cannot be modelled."""
        value = default if self.get(name) is None else self.get(name)
        if not isinstance(value, str) or value not in allowed:
            rule = f"must be one of {', '.join(sorted(allowed))}; other {unsupported} are not supported"
            raise self.error(name, "required" if value is None else rule, value)
        return value

    def error(self, name: str, rule: str, got: object = None, inside: KeyPath = ()) -> ConfigError:
        """An error at the field, under the name that the file uses; `inside` leads on within the field."""
        keys = self._keys(name)
        key = next((key for key in keys if key in self.document.data), keys[0])
        other = f" (or {', '.join(keys[1:])})" if rule == "required" and len(keys) > 1 else ""
        return ConfigError(self.document.place((key, *inside)), rule + other, got)

    @staticmethod
    def _keys(name: str) -> tuple[str, ...]:
        return _ALIASES.get(name, (name,))
