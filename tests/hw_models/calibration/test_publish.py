from moesim.configs.yaml_reader import parse_yaml
from moesim.hw_models.calibration.publish import with_block, with_scalar

TEXT = """\
title: A GPU  # a comment
processors:
  gpu:
    kind: gpu
    tile_latency:
      value: 1 us
      source: guess
    attention:
      # stays
      decode_latency:
        value: 3 us
    fits:
      old:
        rows: 3
"""


def test_a_block_is_replaced_and_all_other_lines_stay() -> None:
    changed = with_block(TEXT, ["processors", "gpu", "tile_latency"], ["value: 2 us", "source: fitted"])
    before, after = TEXT.splitlines(), changed.splitlines()
    assert [line for line in before if line not in after] == ["      value: 1 us", "      source: guess"]
    assert parse_yaml(changed, "text").data["processors"]["gpu"]["tile_latency"] == {
        "value": "2 us",
        "source": "fitted",
    }


def test_missing_sections_are_added_where_they_belong() -> None:
    changed = with_block(TEXT, ["processors", "gpu", "kernels", "sglang", "fits", "new"], ["rows: 7"])
    data = parse_yaml(changed, "text").data["processors"]["gpu"]
    assert data["kernels"] == {"sglang": {"fits": {"new": {"rows": 7}}}}
    assert data["fits"] == {"old": {"rows": 3}}
    again = with_block(changed, ["processors", "gpu", "kernels", "sglang", "exposed"], ["value: 0.5"])
    assert parse_yaml(again, "text").data["processors"]["gpu"]["kernels"]["sglang"]["exposed"] == {"value": 0.5}


def test_equal_keys_of_other_sections_are_left_alone() -> None:
    changed = with_block(TEXT, ["processors", "gpu", "attention", "tile_latency"], ["value: 9 us"])
    gpu = parse_yaml(changed, "text").data["processors"]["gpu"]
    assert gpu["tile_latency"]["value"] == "1 us"
    assert gpu["attention"] == {"decode_latency": {"value": "3 us"}, "tile_latency": {"value": "9 us"}}
    assert "      # stays" in changed.splitlines()


def test_a_scalar_is_written_and_replaced() -> None:
    path = ["processors", "gpu", "residual"]
    once = with_scalar(TEXT, path, "a.npz")
    twice = with_scalar(once, path, "b.npz")
    assert parse_yaml(once, "text").data["processors"]["gpu"]["residual"] == "a.npz"
    assert parse_yaml(twice, "text").data["processors"]["gpu"]["residual"] == "b.npz"
    assert len(twice.splitlines()) == len(TEXT.splitlines()) + 1
