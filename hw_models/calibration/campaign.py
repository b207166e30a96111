"""All fits of one GPU to the measurements of one serving framework, and the device's YAML with what they found."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from moesim.errors import ConfigError, DataError
from moesim.files import write_text
from moesim.hw_models.calibration.aiconfigurator import gpu_folder, read_experts, read_products
from moesim.hw_models.calibration.attention_plan import AttentionPlan, attention_plans, attention_sets
from moesim.hw_models.calibration.fit import STANDARD, FitResult, Progress, Settings
from moesim.hw_models.calibration.llmservingsim import read_cold_products, read_elementwise, read_routed
from moesim.hw_models.calibration.measured import Measured
from moesim.hw_models.calibration.mixed_plan import late_plans, mixed_plans, read_decode_steps, read_mixed_steps
from moesim.hw_models.calibration.plans import (
    Plan,
    cold_plan,
    elementwise_plan,
    expert_plan,
    expert_sections,
    product_plan,
    profiled_expert_plan,
)
from moesim.hw_models.calibration.publish import published, with_scalar
from moesim.hw_models.calibration.residual_fit import LearnedResidual, can_learn, learn_residual
from moesim.hw_models.device import load_device
from moesim.hw_models.gpu import GPU, GpuConfig
from moesim.hw_models.residual import FOLDER, Trees, save_residual
from moesim.workloads.operator_table import OperatorTable

PRODUCTS = ("gemm", "moe")
ATTENTION = ("attention", "mla")
ELEMENTWISE = "elementwise"
OPERATORS = (*PRODUCTS, *ATTENTION)
"""Parts of a GPU that aiconfigurator measured."""
MIXED = "mixed_attention"
PROFILED_EXPERTS = "profiled_experts"
PROFILED_DECODES = "profiled_decodes"
PROFILED_PRODUCTS = "profiled_gemm"
PROFILED = (ELEMENTWISE, MIXED, PROFILED_EXPERTS, PROFILED_DECODES, PROFILED_PRODUCTS)
FITTED = (*OPERATORS, *PROFILED)
"""Parts of a GPU that can be fitted; those of links are `links.OPERATORS`."""
_LONG = ">100 us"
_FEWEST_ROWS = 300
_FEWEST_EXPERT_ROWS = 200
_UPDATE_ORDER = ("bf16",)
"""Fitted first: other formats start from what bf16 has."""


@dataclass(frozen=True)
class Outcome:
    """One fit of a campaign, and the device's YAML after it."""

    plan: Plan | AttentionPlan
    result: FitResult
    text: str


Planned = Callable[[GpuConfig], list[Plan] | list[AttentionPlan]]
"""Fits to one set of measurements, given the device as the fits before left it."""


def campaign(
    device: str,
    data: Path,
    framework: str,
    operators: Sequence[str] = OPERATORS,
    settings: Settings = STANDARD,
    progress: Progress | None = None,
) -> Iterator[Outcome]:
    """Fit every set of kernels of `framework` that was measured on `device`, one after the other.

    Args:
        device: name of a shipped device, or path of its YAML; its file must have one GPU, called `gpu`.
        data: folder of aiconfigurator's layout, with a folder per GPU; for elementwise layers and mixed steps of
            attention, one that has profiles of LLMServingSim at any depth.
        framework: vllm, sglang or trtllm. The kernels of the device's default framework are its own parameters, those
            of another go to `kernels.<framework>`.
        operators: which of `FITTED`.
        settings: of the fits.
        progress: called with the steps done and to do of the fit in progress.

    Raises:
        ConfigError: the device is no GPU.
        DataError: no measurements.
    """
    file = device_file(device)
    text = file.read_text(encoding="utf-8")
    processor = load_device(device, kernels=framework).processor
    if not isinstance(processor, GPU):
        raise ConfigError(device, "must be a GPU")
    config, own = processor.config, ("processors", "gpu")
    is_default = framework == _default_framework(device)
    section = own if is_default else (*own, "kernels", framework)
    if not is_default and "attention" not in config.kernels.get(framework, {}):
        config = _without_attention(config, operators)
    for planned in _planned(data, file.stem, framework, operators):
        for plan in planned(config):
            result = plan.run(settings, progress)
            config = plan.fitted(result)
            text = published(text, plan, result, section)
            yield Outcome(plan, result, text)


def _without_attention(config: GpuConfig, operators: Sequence[str]) -> GpuConfig:
    """`config` without the default framework's kernels of the kinds of attention that are fitted."""
    kinds = {"attention": False, "mla": True}
    fitted = {kinds[kind] for kind in operators if kind in kinds}
    kept = tuple(kernel for kernel in config.attention.kernels if kernel.latent not in fitted)
    return config.model_copy(update={"attention": config.attention.model_copy(update={"kernels": kept})})


def _planned(data: Path, device: str, framework: str, operators: Sequence[str]) -> Iterator[Planned]:
    """All fits, in the order in which they build on each other."""
    if any(kind in OPERATORS for kind in operators):
        yield from _published(gpu_folder(data, device), device, framework, operators)
    if ELEMENTWISE in operators:
        layers = read_elementwise(data, device)
        yield lambda config: [elementwise_plan(config, layers)]
    if PROFILED_PRODUCTS in operators:
        products = read_cold_products(data, device)
        yield partial(_cold_plans, measured=products)
    if PROFILED_EXPERTS in operators:
        experts = read_routed(data, device)
        yield lambda config: [profiled_expert_plan(config, experts)]
    if PROFILED_DECODES in operators:
        yield partial(_late_plans, device=device, measured=read_decode_steps(data, device))
    if MIXED in operators:
        yield partial(_mixed_plans, device=device, measured=read_mixed_steps(data, device))


def _mixed_plans(config: GpuConfig, device: str, measured: Measured[OperatorTable]) -> list[AttentionPlan]:
    found: list[AttentionPlan] = [*mixed_plans(config, measured)]
    if not found:
        raise ConfigError(device, "must have a fitted prefill kernel that takes decodes without packing heads")
    return found


def _cold_plans(config: GpuConfig, measured: Measured[OperatorTable]) -> list[Plan]:
    return [cold_plan(config, measured)]


def _late_plans(config: GpuConfig, device: str, measured: Measured[OperatorTable]) -> list[AttentionPlan]:
    found: list[AttentionPlan] = [*late_plans(config, measured)]
    if not found:
        raise ConfigError(device, "must have a fitted decode kernel for heads that share keys")
    return found


def _published(folder: Path, device: str, framework: str, operators: Sequence[str]) -> Iterator[Planned]:
    """Fits to aiconfigurator's tables."""
    for kind, dtype, measured in measured_sets(folder, framework, [kind for kind in operators if kind in PRODUCTS]):
        yield partial(plans, kind=kind, dtype=dtype, measured=measured)
    for kind in operators:
        if kind in ATTENTION:
            for case, measured in attention_sets(folder, device, framework, latent=kind == "mla"):
                yield partial(attention_plans, case=case, measured=measured)


def device_file(device: str) -> Path:
    """The YAML of a shipped device's name, or of a path."""
    from moesim.configs.loader import find

    return Path(find("devices", device).file)


def _default_framework(device: str) -> str:
    processor = load_device(device).processor
    return processor.config.default_kernels if isinstance(processor, GPU) else ""


def measured_sets(
    folder: Path, framework: str, operators: Sequence[str]
) -> Iterator[tuple[str, str, Measured[OperatorTable]]]:
    """Kind, number format and rows of every set of kernels, bf16 first."""
    readers = {"gemm": read_products, "moe": read_experts}
    for kind in operators:
        found = {(item.source.framework, _dtype(item)): item for item in readers[kind](folder)}
        own = [(dtype, item) for (source, dtype), item in found.items() if source == framework]
        if not own:
            raise DataError(str(folder / kind), f"must hold measurements of {framework}", sorted({k[0] for k in found}))
        fewest = _FEWEST_ROWS if kind == "gemm" else _FEWEST_EXPERT_ROWS
        for dtype, item in sorted(own, key=lambda pair: (pair[0] not in _UPDATE_ORDER, pair[0])):
            if len(item) >= fewest:
                yield kind, dtype, item


def _dtype(measured: Measured[OperatorTable]) -> str:
    return measured.source.kernel.split()[-1]


def plans(config: GpuConfig, kind: str, dtype: str, measured: Measured[OperatorTable]) -> list[Plan]:
    """One plan, or more where ungated experts, or those of several ranks, run kernels of their own."""
    if kind == "gemm":
        return [product_plan(config, measured, dtype)]
    sections = expert_sections(measured)
    return [expert_plan(config, measured.take(rows), dtype, section) for section, rows in sections.items()]


def campaign_residuals(
    outcomes: Sequence[Outcome],
    file: Path,
    framework: str,
    settings: Settings = STANDARD,
    progress: Callable[[int], None] | None = None,
) -> list[LearnedResidual]:
    """Learn the residual of every fit, write those that help beside the device's YAML and name the file in it.

    A residual helps if it lowers the error on shapes that neither physics nor trees saw, of all rows and of the long
    ones; the others are dropped. Residuals of other fits stay, if the device's parameters are still those that they
    were learned beside.

    Args:
        outcomes: of a campaign, whose YAML has been written.
        file: that YAML.
        framework: of the campaign.
        settings: of the campaign.
        progress: called with the fits done.

    Raises:
        ConfigError: scikit-learn is not installed.
        DataError: a file cannot be written.
    """
    processor = load_device(str(file), kernels=framework).processor
    assert isinstance(processor, GPU)  # the campaign was about one
    learned = []
    for number, outcome in enumerate(outcomes, 1):
        if outcome.plan.residual_name and can_learn(outcome.plan, processor):
            learned.append((learn_residual(outcome.plan, outcome.result, processor, settings), outcome.result))
        if progress is not None:
            progress(number)
    better = [item for item, result in learned if _helps(item, result)]
    default = _default_framework(str(file))
    name = f"{file.stem}.npz" if framework == default else f"{file.stem}-{framework}.npz"
    shipped = file.resolve().parent == FOLDER.parent.resolve()
    target = FOLDER / name if shipped else file.resolve().with_name(name)
    save_residual(target, _others(processor, learned) | {item.name: item.trees for item in better})
    section = ("processors", "gpu") if framework == default else ("processors", "gpu", "kernels", framework)
    text = with_scalar(file.read_text(encoding="utf-8"), [*section, "residual"], name if shipped else str(target))
    write_text(file, text)
    return better


def _helps(learned: LearnedResidual, physics: FitResult) -> bool:
    return all(
        learned.unseen[part].mean < physics.unseen[part].mean for part in ("all", _LONG) if part in physics.unseen
    )


def _others(processor: GPU, learned: Sequence[tuple[LearnedResidual, FitResult]]) -> dict[str, Trees]:
    """Models of the device's file that were not learned anew and still match its parameters."""
    if processor.config.residual is None:
        return {}
    anew = {item.name for item, _ in learned}
    return {name: trees for name, trees in processor.matching_models().items() if name not in anew}
