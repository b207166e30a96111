"""What a summary says about the error of its prices."""

import numpy as np
import pytest

from moesim.hw_models.calibration.attention_rows import Sequences, attention_rows, grouped_heads
from moesim.hw_models.collective_table import COLLECTIVES, CollectiveTable
from moesim.hw_models.device import load_device
from moesim.hw_models.gpu import GPU
from moesim.hw_models.system import load_system
from moesim.simulator.scenario import load_scenario, prepare
from moesim.simulator.serving import ServingLoop
from moesim.simulator.simulate import build_pipelines, simulate

KEY, SHARE = "kernel_error_of_90_percent", "kernel_error_time_fraction"


def test_the_error_is_a_mean_over_the_greatest_operators(tiny) -> None:
    scenario = tiny(1)
    setup = prepare(*load_scenario(scenario))
    loop = ServingLoop(setup.requests, build_pipelines(setup))
    loop.run()
    (stage,) = loop.pipelines[0].stages
    errors = stage.stated_errors()
    assert errors.shape == (len(stage.names),)
    busy = stage.totals.time_s * stage.tasks_per_row
    busy[stage.host_rows] = 0
    inside = busy - stage.totals.extrapolated_s * stage.tasks_per_row
    operators = {name: [row for row, own in enumerate(stage.names) if own == name] for name in set(stage.names)}
    total, taken, weight, error = float(busy.sum()), 0.0, 0.0, 0.0
    for rows in sorted(operators.values(), key=lambda rows: -busy[rows].sum()):
        if taken < 0.9 * total:
            taken += float(busy[rows].sum())
            known = [row for row in rows if np.isfinite(errors[row])]
            weight += float(inside[known].sum())
            error += float(errors[known] @ inside[known])
    summary = simulate(scenario).summary
    assert summary[KEY] == pytest.approx(error / weight)
    assert summary[SHARE] == pytest.approx(weight / total)
    assert 0 < summary[SHARE] <= 1 - summary["extrapolated_time_fraction"]


def test_a_gpu_that_nobody_measured_states_no_error(tiny) -> None:
    summary = simulate(tiny(1, system="b200-sxm-1")).summary
    assert summary[KEY] is None
    assert summary[SHARE] == 0


def test_attention_has_the_error_of_its_kernel() -> None:
    shipped = load_device("h200-sxm").processor
    assert isinstance(shipped, GPU)
    gpu = GPU(shipped.config.model_copy(update={"residual": None}))
    heads, many = grouped_heads([32.0], [8.0], [128.0]), np.full(1, np.inf)
    prompt = Sequences(np.ones(1), np.full(1, 512.0), np.zeros(1), many)
    decodes = Sequences(np.full(1, 8.0), np.ones(1), np.full(1, 512.0), many)
    fits = gpu.config.fits
    for cache in ("bf16", "fp8"):
        errors = [fits[f"{phase}_fa3_{cache}"].error for phase in ("prefill", "decode")]
        for parts, expected in (
            ((prompt, None), errors[0]),
            ((None, decodes), errors[1]),
            ((prompt, decodes), max(errors)),
        ):
            assert gpu.stated_errors(attention_rows([cache], heads, *parts)) == expected


def test_a_residual_of_attention_states_its_own_error_for_steps_of_one_phase() -> None:
    gpu = load_device("h200-sxm").processor
    assert isinstance(gpu, GPU)
    models = gpu.matching_models()
    heads, many = grouped_heads([32.0], [8.0], [128.0]), np.full(1, np.inf)
    prompt = Sequences(np.ones(1), np.full(1, 512.0), np.zeros(1), many)
    decodes = Sequences(np.full(1, 8.0), np.ones(1), np.full(1, 512.0), many)
    fits = gpu.config.fits
    names = [f"{phase}_fa3_bf16" for phase in ("prefill", "decode")]
    stated = [models[f"attention.{name}"].error for name in names]
    assert gpu.stated_errors(attention_rows(["bf16"], heads, prompt, None)) == stated[0] < fits[names[0]].error
    assert gpu.stated_errors(attention_rows(["bf16"], heads, None, decodes)) == stated[1] < fits[names[1]].error
    mixed = gpu.stated_errors(attention_rows(["bf16"], heads, prompt, decodes))
    assert mixed == max(fits[name].error for name in names)


def test_collectives_have_the_error_of_their_library() -> None:
    interconnect = load_system("h200-sxm-16").interconnect
    fits = interconnect.intra_node.fits
    expected = {"all_reduce": "nccl", "all_to_all": "nccl_all_to_all", "custom_all_reduce": "custom_all_reduce"}
    for kind, fit in expected.items():
        near, far = (CollectiveTable.of(COLLECTIVES.index(kind), 8 * nodes, nodes) for nodes in (1, 2))
        assert interconnect.stated_errors(near) == fits[fit].error
        assert np.isnan(interconnect.stated_errors(far))
