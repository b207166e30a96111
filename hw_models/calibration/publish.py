"""Writing fitted parameters into a device's YAML, leaving every other line as it is."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from moesim.hw_models.calibration.attention_plan import AttentionPlan
from moesim.hw_models.calibration.attention_publish import kernel_lines
from moesim.hw_models.calibration.fit import FitResult
from moesim.hw_models.calibration.plans import Plan
from moesim.hw_models.parameters import Fit, Parameter, parameters, quantity_text

_INDENT = 2
_LARGE = 1e7
"""Round numbers from here on are written with an exponent."""


def published(text: str, plan: Plan | AttentionPlan, result: FitResult, section: Sequence[str]) -> str:
    """`text` with the fitted parameters of `plan` and the entry of the fit.

    Args:
        text: YAML of the device in block style, with two spaces per level.
        plan: what was fitted.
        result: the values and their error.
        section: keys down to the processor, or to a set of its kernels.
    """
    if isinstance(plan, AttentionPlan):
        kernels = plan.fitted(result).attention.kernels
        lines = [line for kernel in kernels for line in kernel_lines(kernel)]
        text = with_block(text, [*section, "attention", "kernels"], lines)
        return with_block(text, [*section, "fits", plan.name], fit_lines(plan.entry(result)))
    fitted = dict(parameters(plan.fitted(result)))
    for name in result.values:
        text = with_block(text, [*section, *name.split(".")], parameter_lines(fitted[name]))
    return with_block(text, [*section, "fits", plan.name], fit_lines(plan.entry(result)))


def parameter_lines(parameter: Parameter[Any]) -> list[str]:
    """A fitted parameter as YAML, to three digits."""
    value = quantity_text(float(f"{float(parameter.value):.3g}"), parameter.unit)
    number = value if parameter.unit else json.loads(value)
    return _lines({"value": number, "source": parameter.source, "fit": parameter.fit})


def fit_lines(fit: Fit) -> list[str]:
    """The entry of a calibration as YAML."""
    return _lines(fit.model_dump(exclude_none=True, exclude_defaults=True))


def with_block(text: str, path: Sequence[str], block: Sequence[str]) -> str:
    """`text` with `block` under the key at `path`, in place of what is there; missing keys are added at the end."""
    lines = text.splitlines()
    start, end = 0, len(lines)
    for level, key in enumerate(path):
        found = _key_line(lines, start, end, level, key)
        if found is None:
            added = [f"{' ' * _INDENT * (level + step)}{name}:" for step, name in enumerate(path[level:])]
            added += [" " * _INDENT * len(path) + line for line in block]
            return "\n".join([*lines[:end], *added, *lines[end:]]) + "\n"
        start, end = found + 1, _end(lines, found + 1, level)
    indented = [" " * _INDENT * len(path) + line for line in block]
    key = " " * _INDENT * (len(path) - 1) + f"{path[-1]}:"
    return "\n".join([*lines[: start - 1], key, *indented, *lines[end:]]) + "\n"


def with_scalar(text: str, path: Sequence[str], value: str) -> str:
    """`text` with `value` under the key at `path`, as `with_block`."""
    lines = with_block(text, path, []).splitlines()
    start, end = 0, len(lines)
    for level, key in enumerate(path):
        start = (_key_line(lines, start, end, level, key) or 0) + 1
        end = _end(lines, start, level)
    lines[start - 1] = f"{' ' * _INDENT * (len(path) - 1)}{path[-1]}: {_scalar(value)}"
    return "\n".join(lines) + "\n"


def _key_line(lines: Sequence[str], start: int, end: int, level: int, key: str) -> int | None:
    prefix = " " * _INDENT * level + key + ":"
    return next((at for at in range(start, end) if lines[at] == prefix or lines[at].startswith(prefix + " ")), None)


def _end(lines: Sequence[str], start: int, level: int) -> int:
    """First line after the block of a key at `level`."""
    inside = " " * _INDENT * level + " "
    return next((at for at in range(start, len(lines)) if not lines[at].startswith(inside)), len(lines))


def _lines(mapping: Mapping[str, Any]) -> list[str]:
    lines = []
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            lines.append(f"{key}:")
            lines += [" " * _INDENT + line for line in _lines(value)]
        else:
            lines.append(f"{key}: {_scalar(value)}")
    return lines


def _scalar(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(_scalar(item) for item in value)}]"
    if isinstance(value, float):
        short = f"{value:g}"
        return f"{int(value)}" if value.is_integer() and (abs(value) < _LARGE or float(short) != value) else short
    text = str(value)
    plain = text.replace("_", "").replace(".", "").replace(" ", "").replace("/", "").isalnum()
    return text if plain else json.dumps(text, ensure_ascii=False)
