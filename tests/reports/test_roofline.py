from typing import Any

import numpy as np
import pytest

from moesim.configs.loader import shipped
from moesim.errors import InputError
from moesim.hw_models.device import load_device
from moesim.reports.roofline import plotted_steps, rooflines, roofs
from moesim.reports.roofline_figure import draw_roofline, limits_of, roofline_figure, step_colours
from moesim.reports.style import new_figure, save
from moesim.workloads.models import load_model

MODELS, DEVICES = ("gpt-oss-20b", "deepseek-v3", "mixtral-8x7b"), shipped("devices")
BATCHES = [1, 16, 128]
SMALL = {
    "name": "$tiny_{moe}$",
    "source": "made for tests",
    "hidden": 256,
    "vocabulary": 1000,
    "layers": [
        {
            "repeat": 3,
            "pattern": [
                {
                    "attention": {"kind": "gqa", "heads": 8, "kv_heads": 8, "head_dim": 32},
                    "ffn": {"kind": "moe", "experts": 8, "top_k": 2, "intermediate": 128},
                }
            ],
        }
    ],
}


def panel(model, device="h100-sxm", batches=BATCHES, *, context=1024, prompt=512, **options):
    loaded = load_model(model)
    return rooflines(loaded, [load_device(device)], plotted_steps(batches, context, prompt), **options)[0]


@pytest.fixture(scope="module")
def llama():
    return panel("llama-3.1-8b")


def of_kind(roofline, label, phase="decode"):
    return [point for point in roofline.points if point.kind.label == label and point.step.phase == phase]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("model", MODELS)
def test_nothing_is_faster_than_the_data_sheet(model, device):
    roofline = panel(model, device)
    assert {point.step.phase for point in roofline.points} == {"decode", "prefill"}
    for point in roofline.points:
        assert point.attained_flops_per_s <= point.roof_flops_per_s * (1 + 1e-9)
        assert 0 < point.time_fraction < 1
        assert set(point.roofs) <= set(roofline.roofs)


def test_dense_layers_by_hand(llama):
    hidden, inner, layers = 4096, 14336, 32
    for point in of_kind(llama, "dense FFN"):
        tokens = point.step.tokens
        assert point.operators == ("ffn_up", "ffn_down")
        assert point.flops == layers * 2 * tokens * 3 * hidden * inner
        moved = 3 * hidden * inner + tokens * (hidden + 2 * inner + inner + hidden)
        assert point.bytes == layers * 2 * moved
        assert point.intensity_flops_per_byte == pytest.approx(point.flops / point.bytes, rel=1e-15)


def test_decode_attention_by_hand(llama):
    """Four queries share a key of two bytes: 4 x 4 FLOPs over 4 bytes, however many sequences there are."""
    for point in of_kind(llama, "attention"):
        assert point.intensity_flops_per_byte == pytest.approx(4.0, rel=1e-2)
        assert point.intensity_flops_per_byte < 4.0


def test_batching_raises_the_intensity_of_products_only(llama):
    for label in ("attention projections", "dense FFN", "LM head"):
        intensities = [point.intensity_flops_per_byte for point in of_kind(llama, label)]
        assert len(intensities) == len(BATCHES)
        assert np.all(np.diff(intensities) > 0)
        assert intensities[0] == pytest.approx(1.0, rel=1e-2)  # 2 FLOPs per weight of 2 bytes


def test_times_are_those_of_the_device(llama):
    """Every operator counts once: shares of time with and without FLOPs are shares of one whole."""
    for step in {point.step for point in llama.points}:
        points = [point for point in llama.points if point.step == step]
        wholes = [point.time_s / point.time_fraction for point in points]
        assert wholes == pytest.approx([wholes[0]] * len(points))
        assert sum(point.time_fraction for point in points) < 1


def test_experts_work_on_every_token_top_k_times():
    for point in of_kind(panel(SMALL), "routed experts"):
        assert point.flops == 3 * point.step.tokens * 2 * (2 * 3 * 256 * 128)
        assert point.executions == 3


def test_one_token_reads_top_k_experts():
    (point,) = of_kind(panel(SMALL, batches=[1]), "routed experts")
    expert_bytes = 3 * 256 * 128 * 2
    assert 2 * 3 * expert_bytes < point.bytes < 2 * 3 * expert_bytes * 1.1


def test_shards_share_the_work(llama):
    half = panel("llama-3.1-8b", tp=2)
    for whole, shard in zip(of_kind(llama, "dense FFN"), of_kind(half, "dense FFN"), strict=True):
        assert shard.flops == whole.flops / 2
    assert half.weight_bytes == pytest.approx(llama.weight_bytes / 2, rel=1e-2)


def test_formats_decide_the_roof():
    for point in panel("deepseek-v3", "h200-sxm").points:
        (roof,) = point.roofs
        assert roof.format.startswith("bf16" if point.kind.label in {"attention", "router", "LM head"} else "fp8")


def test_two_processors_have_roofs_of_their_own():
    known = roofs(load_device("duplex"))
    by_processor = {name: [roof for roof in known if roof.processor == name] for name in ("xpu", "pim")}
    assert len(by_processor["xpu"]) > 1
    (pim,) = by_processor["pim"]
    assert pim.format == ""
    assert pim.peak_bytes_per_s > by_processor["xpu"][0].peak_bytes_per_s
    one_token = of_kind(panel("mixtral-8x7b", "duplex", [1]), "routed experts")
    assert {roof.processor for point in one_token for roof in point.roofs} == {"pim"}


@pytest.mark.parametrize(
    ("batches", "context", "prompt", "place"),
    [([1, 0], 1, 1, "batch"), ([2**20 + 1], 1, 1, "batch"), ([1], 0, 1, "context"), ([1], 1, -3, "prompt")],
)
def test_steps_have_limits(batches, context, prompt, place):
    with pytest.raises(InputError, match=f"^{place}: must be a whole number from 1 to 1,048,576"):
        plotted_steps(batches, context, prompt)


# --- figures -----------------------------------------------------------------------------------------------------


def test_every_point_is_drawn_where_it_belongs(llama):
    axes: Any = new_figure(4, 3).subplots()
    draw_roofline(axes, llama)
    drawn = {(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_linestyle() == "None"}
    assert drawn == {(point.intensity_flops_per_byte, point.attained_flops_per_s) for point in llama.points}
    assert "FLOP/byte" in axes.get_xlabel()
    assert "FLOP/s" in axes.get_ylabel()
    assert draw_roofline(axes, llama) is axes


def test_drawn_roofs_bend_at_the_corner_and_end_at_the_peak(llama):
    axes: Any = new_figure(4, 3).subplots()
    draw_roofline(axes, llama)
    roof = llama.roofs[0]
    sheet, sustained = (line for line in axes.lines if line.get_linestyle() != "None")
    assert sheet.get_xdata()[1] == pytest.approx(roof.peak_flops_per_s / roof.peak_bytes_per_s)
    assert sheet.get_ydata()[1:].tolist() == [roof.peak_flops_per_s] * 2
    assert sustained.get_ydata()[-1] < sheet.get_ydata()[-1]


def test_axes_hold_all_points_of_all_panels():
    panels = [panel("gpt-oss-20b", device) for device in DEVICES]
    (left, right), (low, high) = limits_of(panels)
    for point in (point for roofline in panels for point in roofline.points):
        assert left < point.intensity_flops_per_byte < right
        assert low < point.attained_flops_per_s < high


def test_steps_have_colours_of_their_own(llama):
    assert len(set(step_colours(llama).values())) == len(BATCHES) + 1


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_figure_has_a_panel_for_each_device(count):
    panels = [panel("gpt-oss-20b", device) for device in DEVICES[:count]]
    figure: Any = roofline_figure(panels)
    titles = [axes.get_title(loc="left").replace("\n", " ") for axes in figure.findobj(lambda part: part.axes is part)]
    assert titles == [roofline.title for roofline in panels]


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_same_operators_give_the_same_bytes(suffix, tmp_path):
    first, second = (save(roofline_figure([panel(SMALL)]), tmp_path / f"{name}{suffix}") for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert panel(SMALL) == panel(SMALL)
