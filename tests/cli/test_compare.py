"""`moesim compare`: one page, or one error and nothing written."""

import json

import pytest


def test_a_grid_becomes_one_page(moesim, folder):
    done = moesim("compare", "tiny.yaml", "--set", "seed=0,1", "-o", "page.html")
    assert (done.code, done.err) == (0, "")
    page = (folder / "page.html").read_text()
    assert "tiny.yaml seed=1" in page
    assert sorted(path.name for path in folder.iterdir()) == ["page.html", "tiny-moe.yaml", "tiny.yaml"]


def test_json_holds_settings_and_ratios(moesim):
    done = moesim("compare", "tiny.yaml", "--set", "system=a100-sxm-1,h100-sxm-1", "-o", "page.md", "--json")
    found = json.loads(done.out)
    assert [run["base"] for run in found["results"]["runs"]] == ["tiny.yaml system=a100-sxm-1"] * 2
    assert found["results"]["runs"][0]["ratios"]["tpot_p50_s"] == 1.0
    assert len(found["settings"]["runs"]) == 2
    assert found["output"] == "page.md"


def test_several_scenarios_are_compared_under_the_same_settings(moesim, folder):
    (folder / "other.yaml").write_text((folder / "tiny.yaml").read_text().replace("h100-sxm-1", "h200-sxm-1"))
    done = moesim("compare", "tiny.yaml", "other.yaml", "--set", "concurrency=1,2", "-o", "page.md", "--json")
    bases = [run["base"] for run in json.loads(done.out)["results"]["runs"]]
    assert bases == ["tiny.yaml concurrency=1", "tiny.yaml concurrency=2"] * 2


def test_saved_runs_are_compared_and_kept_runs_are_not_repeated(moesim, folder):
    moesim("simulate", "tiny.yaml", "--out", "saved")
    assert moesim("compare", "saved", "tiny.yaml", "-o", "page.md", "--runs", "runs").code == 0
    kept = sorted(path.name for path in (folder / "runs").iterdir())
    before = (folder / "runs" / kept[0] / "summary.json").stat().st_mtime_ns
    assert moesim("compare", "saved", "tiny.yaml", "-o", "page.md", "--runs", "runs").code == 0
    assert (folder / "runs" / kept[0] / "summary.json").stat().st_mtime_ns == before
    assert len(kept) == 1


@pytest.mark.parametrize(
    ("arguments", "rules"),
    [
        (["tiny.yaml", "-o", "page.pdf"], ["page.pdf", "must end in .html or .md"]),
        (["tiny.yaml", "-o", "none/page.md"], ["none/page.md", "folder"]),
        (["tiny.yaml", "-o", "page.md", "--runs", "tiny.yaml"], ["--runs tiny.yaml: must be a folder, and is a file"]),
        (["tiny.yml", "-o", "page.md"], ["tiny.yml", "no such file"]),
        (["quickstrt", "-o", "page.md"], ["did you mean `quickstart`?"]),
        (["empty", "-o", "page.md"], ["empty: must be a folder that a simulation saved"]),
        (["tiny.yaml", "--set", "seed", "-o", "page.md"], ["--set seed: must read `key=value`"]),
        (["tiny.yaml", "--set", "seed=1,,2", "-o", "page.md"], ["--set seed=1,,2: must read `key=value`"]),
        (["tiny.yaml", "--set", "sed=1,2", "-o", "page.md"], ["--set sed: unknown key; did you mean `seed`?"]),
        (["tiny.yaml", "--set", "seed=1,-2", "-o", "page.md"], ["--set seed: must be >= 0, got -2"]),
        (["tiny.yaml", "--set", "seed=" + ",".join(map(str, range(13))), "-o", "page.md"], ["at most 12 runs, got 13"]),
    ],
)
def test_wrong_input_is_one_error_and_writes_nothing(moesim, folder, contents, arguments, rules):
    (folder / "empty").mkdir()
    before = contents()
    done = moesim("compare", *arguments)
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    for rule in rules:
        assert rule in done.err
    assert contents() == before


def test_saved_runs_of_one_name_are_told_apart_and_incomplete_ones_refused(moesim, folder):
    for name in ("a/run", "b/run"):
        moesim("simulate", "tiny.yaml", "--out", name)
    assert moesim("compare", "a/run", "b/run", "-o", "page.html").code == 0
    assert "a/run" in (folder / "page.html").read_text()
    summary = json.loads((folder / "b/run/summary.json").read_text())
    del summary["mean_power_per_device_w"]
    (folder / "b/run/summary.json").write_text(json.dumps(summary))
    done = moesim("compare", "a/run", "b/run", "-o", "other.html")
    assert (done.code, done.out) == (2, "")
    assert "b/run: summary.json: must have the key, got 'mean_power_per_device_w'" in done.err
    assert not (folder / "other.html").exists()
