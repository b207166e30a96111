"""`moesim models` and `moesim hardware`: what ships, and what it says about itself."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from moesim.cli.output import print_json, show, si, table
from moesim.configs.loader import Document, find, shipped
from moesim.configs.rules import did_you_mean
from moesim.errors import ConfigError
from moesim.hw_models.device import Device, describe, load_device
from moesim.hw_models.parameters import ParameterRow, parameters
from moesim.hw_models.system import System, describe_links, load_system
from moesim.workloads.models import Model, load_model

_FILES = (".yaml", ".yml", ".json")


def list_models(*, as_json: bool) -> None:
    """Table of the shipped models."""
    models = [load_model(name) for name in shipped("models")]
    if as_json:
        print_json({}, {"models": [_model_facts(model) for model in models]})
        return
    numbers = ("params", "active", "weights", "layers", "experts")
    overview = table("model", *numbers, "attention", right=numbers)
    for model in models:
        facts = _model_facts(model)
        routed = f"{facts['top_k']} of {facts['experts']}" if facts["experts"] else "-"
        sizes = (si(facts["parameters"], ""), si(facts["active_parameters"], ""), si(facts["weight_bytes"], "B"))
        overview.add_row(model.name, *sizes, str(facts["layers"]), routed, facts["attention"])
    show(overview)


def show_model(reference: str, *, as_json: bool) -> None:
    """Everything about one model."""
    model = load_model(reference)
    facts = _model_facts(model)
    if as_json:
        print_json({"model": reference}, facts | {"configuration": model.model_dump(mode="json", by_alias=True)})
        return
    values = table("", "", header=False)
    for name, value in facts.items():
        values.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    groups = table("layers", "attention", "feed-forward")
    for group in model.groups:
        for layer in group.pattern:
            groups.add_row(f"{group.repeat} x", _settings(layer.attention), _settings(layer.ffn))
    show(values, groups)


def _model_facts(model: Model) -> dict[str, Any]:
    block = model.moe_layers[0][1] if model.moe_layers else None
    return {
        "name": model.name,
        "parameters": model.parameters,
        "active_parameters": model.active_parameters,
        "weight_bytes": int(model.weight_bytes),
        "layers": len(model.layers),
        "moe_layers": len(model.moe_layers),
        "hidden": model.hidden,
        "vocabulary": model.vocabulary,
        "experts": block.experts if block else 0,
        "top_k": block.top_k if block else 0,
        "attention": _attention(model),
        "kv_bytes_per_token": int(sum(layer.attention.cached_bytes(1, model.dtypes) for layer in model.layers)),
        "state_bytes_per_sequence": int(sum(layer.attention.state_bytes(1, model.dtypes) for layer in model.layers)),
        "source": model.source,
    }


def _attention(model: Model) -> str:
    kinds = {layer.attention.title for layer in model.layers}
    windows = sorted({layer.attention.window for layer in model.layers if layer.attention.window})
    return "+".join(sorted(kinds)) + "".join(f", window {window}" for window in windows)


def _settings(block: Any) -> str:
    """Fields that differ from their defaults, and the kind."""
    values = block.model_dump(mode="json", exclude_defaults=True)
    return ", ".join([block.kind, *(f"{key}={value}" for key, value in values.items() if key != "kind")])


def list_hardware(*, as_json: bool) -> None:
    """Shipped devices, and the systems made of them."""
    devices = [load_device(name) for name in shipped("devices")]
    systems = {name: load_system(name) for name in shipped("systems")}
    if as_json:
        facts = [_system_facts(name, system) for name, system in systems.items()]
        print_json({}, {"devices": [_device_facts(device) for device in devices], "systems": facts})
        return
    chips = table("device", "memory", "idle", "", right=("memory", "idle"))
    for device in devices:
        chips.add_row(device.name, si(device.memory_bytes, "B"), f"{device.idle_w:.0f} W", device.config.title)
    clusters = table("system", "device", "per node", "", right=("per node",))
    for name, system in systems.items():
        clusters.add_row(f"{name}-N", system.device.name, str(system.config.devices_per_node), system.config.title)
    show(chips, clusters, Text("N is the number of devices, such as h100-sxm-8."))


def _device_facts(device: Device) -> dict[str, Any]:
    return {
        "name": device.name,
        "title": device.config.title,
        "memory_bytes": device.memory_bytes,
        "idle_w": device.idle_w,
    }


def _system_facts(name: str, system: System) -> dict[str, Any]:
    return {
        "name": name,
        "title": system.config.title,
        "device": system.device.name,
        "devices_per_node": system.config.devices_per_node,
    }


def show_hardware(name: str, *, as_json: bool) -> None:
    """Parameters of one device, or of a system's links and its device."""
    subject = _hardware(name)
    device = subject.device if isinstance(subject, System) else subject
    rows = [*(describe_links(subject) if isinstance(subject, System) else []), *describe(device)]
    if as_json:
        values = [*(parameters(subject.config) if isinstance(subject, System) else []), *parameters(device.config)]
        numbers: list[dict[str, Any]] = [{"value": parameter.value, "unit": parameter.unit} for _, parameter in values]
        # Attention kernels come last, one line for several values.
        numbers += [{"value": None, "unit": ""}] * (len(rows) - len(numbers))
        facts = [row._asdict() | number for row, number in zip(rows, numbers, strict=True)]
        print_json({"hardware": name}, {"name": subject.name, "title": subject.config.title, "parameters": facts})
        return
    show(Text(f"{subject.name}  ", style="bold").append(subject.config.title, style="not bold"), *_with_sources(rows))


def _with_sources(rows: Sequence[ParameterRow]) -> tuple[Table, Table]:
    """Parameters with the number of their source, and the sources, of which many parameters share one."""
    texts = [f"{row.source}, error {row.error}" if row.error else row.source for row in rows]
    sources = {text: f"[{number}]" for number, text in enumerate(dict.fromkeys(texts), start=1)}
    values = table("parameter", "value", "source", right=("value",))
    names, *others = values.columns
    names.no_wrap = False  # some are longer than a terminal is wide
    for column in others:
        column.no_wrap = True
    for row, text in zip(rows, texts, strict=True):
        values.add_row(row.name, row.value, sources[text])
    legend = Table.grid(padding=(0, 1))
    for text, number in sources.items():
        legend.add_row(f" {number}", text)
    return values, legend


def _hardware(name: str) -> Device | System:
    """A device or system by shipped name or path; the contents of a file say which it is.

    Raises:
        ConfigError: there is neither, or its description breaks a rule.
    """
    devices, systems = shipped("devices"), shipped("systems")
    if name in devices:
        return load_device(name)
    if "/" in name or name.endswith(_FILES):
        return load_device(name) if _is_device(find("systems", name)) else load_system(name)
    if name in systems or name.rpartition("-")[0] in systems:
        return load_system(name)
    hint = did_you_mean(name, {*devices, *systems})
    rule = f"must be a path, a device ({', '.join(devices)}) or a system ({', '.join(f'{s}-N' for s in systems)})"
    raise ConfigError("hardware", f"{rule} ({hint})" if hint else rule, name)


def _is_device(document: Document) -> bool:
    return isinstance(document.data, dict) and "processors" in document.data
