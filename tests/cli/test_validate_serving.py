"""`moesim validate serving`: what is replayed, what is printed and saved, and what is refused."""

import json
from pathlib import Path

import pytest

REQUEST = {"queued_ts": 0.0, "first_token_ts": 0.1, "last_token_ts": 0.2, "input_toks": 50, "output_toks": 3}
SILICON = (
    "id,backend,backend_version,model_path,system,precision,mode,isl,osl,gemm_quant_mode,tp_size,attention_dp_size,"
    "moe_tp_size,moe_ep_size,silicon_ttft_ms,silicon_tpot_ms,silicon_concurrency\n"
    "apart,vllm,0.11,openai/gpt-oss-120b,h200_sxm,fp4,disagg,64,8,nvfp4,1,1,1,1,50,5,2\n"
    "moe,vllm,0.11,openai/gpt-oss-120b,h200_sxm,fp4,agg,64,8,nvfp4,1,1,1,1,50,5,2\n"
)


@pytest.fixture
def data(folder: Path) -> Path:
    run = folder / "data" / "RTXPRO6000" / "Llama-3.1-8B" / "vllm"
    run.mkdir(parents=True)
    meta = {"vllm_version": "0.19.0", "engine_kwargs": {"max_num_batched_tokens": 2048, "max_num_seqs": 128}}
    (run / "meta.json").write_text(json.dumps(meta))
    (run / "requests.jsonl").write_text(json.dumps(REQUEST) + "\n")
    (folder / "data" / "silicon_points.csv").write_text(SILICON)
    return folder / "data"


def test_only_some_kinds_are_replayed(moesim, data: Path) -> None:
    arguments = "validate", "serving", "--data", str(data), "--json", "--workers", "1", "--only"
    recorded, both = (json.loads(moesim(*arguments, kinds).out) for kinds in ("recorded", "apart, moe"))
    assert {row["section"] for row in recorded["results"]["groups"]} == {"recorded runs"}
    assert {row["section"] for row in both["results"]["groups"]} == {"aggregated, MoE", "prefill and decode apart"}
    assert both["settings"]["only"] == "apart, moe"


def test_tables_are_saved(moesim, folder: Path, data: Path) -> None:
    outcome = moesim("validate", "serving", "--data", str(data), "--only", "recorded", "--out", "out")
    assert outcome.code == 0
    names = {path.suffix for path in (folder / "out").iterdir()}
    assert {".csv", ".json", ".md", ".png"} <= names


def test_rows_are_simulated_again_with_constants_that_have_not_seen_them(moesim, folder: Path, data: Path) -> None:
    points = data / "silicon_points.csv"
    points.write_text(SILICON + SILICON.splitlines()[-1].replace("moe,", "other,", 1).replace("64,8", "96,8") + "\n")
    arguments = "validate", "serving", "--data", str(data), "--only", "moe", "--workers", "1", "--fit", "--out", "out"
    found = json.loads(moesim(*arguments, "--json", "--runs", "runs").out)["results"]
    calibrated = [row for row in found["groups"] if row["section"].endswith("calibrated, on unseen deployments")]
    assert [(row["op"], row["rows"], row["unanswered"]) for row in calibrated] == [("ttft", 2, 0), ("tpot", 2, 0)]
    assert [fit["deployments"] for fit in found["calibrations"]] == [2]
    assert len(list((folder / "runs").glob("*.npz"))) == 4  # each with and without constants


def test_why_there_is_no_answer_is_said(moesim, data: Path) -> None:
    arguments = "validate", "serving", "--data", str(data), "--only", "apart"
    assert "- 1 x the number of workers is not stated" in moesim(*arguments).out
    found = json.loads(moesim(*arguments, "--json").out)["results"]["unanswered"]
    assert found == {"the number of workers is not stated": ["apart"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "validate serving: needs either --data, or --result"),
        (["--data", "missing"], "--data missing: must be a folder"),
        (
            ["--data", "data", "--only", "mo"],
            "--only: must be some of recorded, moe, dense, apart, separated by commas",
        ),
        (["--data", "data", "--only", "dense"], "--only: nothing of that kind is in the data"),
        (["--data", "data", "--only", "apart", "--sample", "1"], "must leave something to replay after"),
        (["--data", "data", "--only", "moe", "--max-concurrency", "1"], "must leave something to replay after"),
        (["--result", "result.json"], "--scenario: is needed with --result"),
        (["--data", "data", "--runs", "file"], "--runs file: must be a folder, and is a file"),
    ],
)
def test_what_cannot_be_done_is_said(moesim, folder: Path, data: Path, arguments: list[str], message: str) -> None:
    (folder / "file").touch()
    outcome = moesim("validate", "serving", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.out == ""
    assert data.is_dir()
