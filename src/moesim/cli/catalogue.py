"""`moesim models` and `moesim hardware`: what ships, and what it says about itself."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from moesim.cli.output import print_json, si
from moesim.configs.loader import shipped
from moesim.errors import ConfigError
from moesim.hw_models.device import Device, describe, load_device
from moesim.hw_models.parameters import ParameterRow, parameter_rows
from moesim.hw_models.system import System, load_system
from moesim.workloads.models import LatentAttention, Model, load_model
from moesim.workloads.operator_table import DTYPES

_WIDE = 160  # columns of text when the output is not a terminal


def list_models(*, as_json: bool) -> None:
    """Table of the shipped models."""
    models = [load_model(name) for name in shipped("models")]
    if as_json:
        print_json({"models": [_model_facts(model) for model in models]})
        return
    table = _table("model", "parameters", "active", "weights", "layers", "experts", "top-k", "attention")
    for model in models:
        facts = _model_facts(model)
        routed = (str(facts["experts"]), str(facts["top_k"])) if facts["experts"] else ("-", "-")
        sizes = (si(facts["parameters"], ""), si(facts["active_parameters"], ""), si(facts["weight_bytes"], "B"))
        table.add_row(model.name, *sizes, str(facts["layers"]), *routed, facts["attention"])
    _console().print(table)


def show_model(reference: str, *, as_json: bool) -> None:
    """Everything about one model."""
    model = load_model(reference)
    facts = _model_facts(model)
    if as_json:
        print_json({"model": facts, "configuration": model.model_dump(mode="json", by_alias=True)})
        return
    table = _table("", "", header=False)
    for name, value in facts.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    console = _console()
    console.print(table)
    groups = _table("layers", "attention", "feed-forward")
    for group in model.groups:
        for layer in group.pattern:
            groups.add_row(f"{group.repeat} x", _settings(layer.attention), _settings(layer.ffn))
    console.print(groups)


def _model_facts(model: Model) -> dict[str, Any]:
    block = model.moe_layers[0][1] if model.moe_layers else None
    element = DTYPES[model.dtypes.kv_cache].bytes
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
        "kv_bytes_per_token": int(sum(layer.attention.kv_elements(1) for layer in model.layers) * element),
        "source": model.source,
    }


def _attention(model: Model) -> str:
    kinds = {"MLA" if isinstance(layer.attention, LatentAttention) else "GQA" for layer in model.layers}
    windows = sorted({layer.attention.window for layer in model.layers if layer.attention.window})
    return "+".join(sorted(kinds)) + "".join(f", window {window}" for window in windows)


def _settings(block: Any) -> str:
    """Fields that differ from their defaults, and the kind."""
    values = block.model_dump(mode="json", exclude_defaults=True)
    return ", ".join([block.kind, *(f"{key}={value}" for key, value in values.items() if key != "kind")])


def list_hardware(*, as_json: bool) -> None:
    """Shipped devices, and the systems made of them."""
    devices = [load_device(name) for name in shipped("devices")]
    systems = [load_system(name) for name in shipped("systems")]
    if as_json:
        names = [{"name": name, "device": system.device.name} for name, system in zip(shipped("systems"), systems, strict=True)]
        print_json({"devices": [_device_facts(device) for device in devices], "systems": names})
        return
    table = _table("device", "memory", "idle", "title")
    for device in devices:
        table.add_row(device.name, si(device.memory_bytes, "B"), f"{device.idle_w:.0f} W", device.config.title)
    console = _console()
    console.print(table)
    table = _table("system", "device", "per node", "title")
    for name, system in zip(shipped("systems"), systems, strict=True):
        table.add_row(f"{name}-N", system.device.name, str(system.config.devices_per_node), system.config.title)
    console.print(table)
    console.print("N is the number of devices, such as h100-sxm-8.")


def show_hardware(name: str, *, as_json: bool) -> None:
    """Parameters of one device, or of a system's links and its device."""
    subject = load_device(name) if name in shipped("devices") else _system(name)
    rows = describe(subject.device) if isinstance(subject, System) else describe(subject)
    links = _link_rows(subject) if isinstance(subject, System) else []
    if as_json:
        print_json({"name": subject.name, "parameters": [row._asdict() for row in [*links, *rows]]})
        return
    table = _table("parameter", "value", "source", "error of the fit")
    for row in [*links, *rows]:
        table.add_row(*row)
    console = _console()
    console.print(f"[bold]{subject.name}[/bold]  {subject.config.title}")
    console.print(table)


def _system(name: str) -> System:
    try:
        return load_system(name)
    except ConfigError as error:
        known = ", ".join([*shipped("devices"), *(f"{system}-N" for system in shipped("systems"))])
        raise ConfigError(error.place, f"{error.rule}; devices and systems: {known}", error.got) from None


def _link_rows(system: System) -> list[ParameterRow]:
    links = {"intra_node": system.config.intra_node, "inter_node": system.config.inter_node}
    return [row for name, link in links.items() for row in parameter_rows(link, link.fits, f"{name}.")]


def _device_facts(device: Device) -> dict[str, Any]:
    return {
        "name": device.name,
        "title": device.config.title,
        "memory_bytes": device.memory_bytes,
        "idle_w": device.idle_w,
    }


def _table(*columns: str, header: bool = True) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_header=header, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDE)
