"""Request files: the kinds that are known, and the line of everything that is wrong."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from moesim.errors import DataError
from moesim.workloads.request_files import numbers, read_requests, read_table

OWN = "arrival_s,prompt_tokens,output_tokens\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"


def written(tmp_path: Path, name: str, text: str) -> Path:
    (tmp_path / name).write_text(text, newline="")
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.csv", OWN + "0,5,6\n1.5,7,8\n"),
        ("r.csv", "\ufeff" + OWN + "0.0,5,6\n1.5,7.0,8"),  # with a byte-order mark, without a last newline
        ("r.csv", "user,output_tokens,prompt_tokens,arrival_s\n'a',6,5,0\n\n'b',8,7,1.5\n\n"),
        ("r.tsv", OWN.replace(",", "\t") + "0\t5\t6\n1.5\t7\t8\n"),
        ("azure.csv", AZURE + "2023-11-16 18:15:46.5000000,5,6\r\n2023-11-16 18:15:48.0000000,7,8"),
        ("azure.csv", AZURE + "2024-05-10 00:00:00.009930+00:00,5,6\r\n2024-05-10 00:00:01.509930+00:00,7,8"),
        (
            "r.jsonl",
            (
                '{"arrival_s": 0, "prompt_tokens": 5, "output_tokens": 6}\n\n'
                '{"output_tokens": 8, "prompt_tokens": 7, "arrival_s": 1.5, "more": 1}\n'
            ),
        ),
        (
            "mooncake.jsonl",
            (
                '{"timestamp": 100, "input_length": 5, "output_length": 6, "hash_ids": [1]}\n'
                '{"timestamp": 1600, "input_length": 7, "output_length": 8, "hash_ids": [1, 2]}\n'
            ),
        ),
        (
            "vllm.jsonl",
            (
                '{"request_id": "a", "arrival_time": 1e9, "input_toks": 5, "output_toks": 6}\n'
                '{"request_id": "b", "arrival_time": 1000000001.5, "input_toks": 7, "output_toks": 8}\n'
            ),
        ),
    ],
)
def test_known_kinds(tmp_path: Path, name: str, text: str) -> None:
    columns = read_requests(written(tmp_path, name, text))
    np.testing.assert_allclose(columns.arrival_s, [0, 1.5])
    assert columns.prompt_tokens.tolist() == [5, 7]
    assert columns.output_tokens.tolist() == [6, 8]
    assert columns.prompt_tokens.dtype == np.int64


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("r.csv", OWN + "0,5,6\nnan,7,8\n", "r.csv:3: arrival_s: must be finite and >= 0, got nan"),
        ("r.csv", OWN + "0,5,6\ninf,7,8\n", "r.csv:3: arrival_s: must be finite and >= 0, got inf"),
        ("r.csv", OWN + "-1,5,6\n", "r.csv:2: arrival_s: must be finite and >= 0, got -1"),
        ("r.csv", OWN + "2,5,6\n\n1,7,8\n", "r.csv:4: arrival_s: must not be earlier than in the row before, got 1"),
        ("r.csv", OWN + "soon,5,6\n", "r.csv:2: arrival_s: must be a number, got 'soon'"),
        ("r.csv", OWN + ",5,6\n", "r.csv:2: arrival_s: must be a number, got ''"),
        ("r.csv", OWN + "0,5,6\n1,0,8\n", "r.csv:3: prompt_tokens: must be a whole number from 1 to 2147483647, got 0"),
        ("r.csv", OWN + "0,5,6\n1,7,-8\n", "r.csv:3: output_tokens: must be a whole number from 1"),
        ("r.csv", OWN + "0,5,6.5\n", "r.csv:2: output_tokens: must be a whole number from 1 to 2147483647, got 6.5"),
        ("r.csv", OWN + "0,1e300,6\n", "r.csv:2: prompt_tokens: must be a whole number from 1"),
        ("r.csv", OWN + "0,nan,6\n", "r.csv:2: prompt_tokens: must be a whole number from 1"),
        ("r.csv", OWN + "0,5,6\n1,7\n", "r.csv:3: must have 3 fields (arrival_s,prompt_tokens,output_tokens)"),
        ("r.csv", OWN + "0,5,6,7\n", "r.csv:2: must have 3 fields"),
        ("r.csv", OWN, "r.csv: must have at least one request"),
        ("r.csv", "", "r.csv: must start with a line of column names"),
        ("r.csv", "a,b\n1,2\n", "r.csv:1: must have the columns arrival_s,prompt_tokens,output_tokens or TIMESTAMP"),
        ("r.txt", OWN, "must end in .csv, .tsv, .jsonl"),
        ("r.csv", AZURE + "yesterday,5,6\n", "r.csv:2: TIMESTAMP: must be a date and time, got 'yesterday'"),
        ("r.csv", AZURE + "2023-11-16,5,6\n,5,6\n", "r.csv:3: TIMESTAMP: must be a date and time, got ''"),
        ("r.csv", AZURE + "2023-11-16T01:00:00+02:00,5,6\n", "r.csv:2: TIMESTAMP: must be a date and time"),
        ("r.csv", AZURE + "2023-11-16 00:00,5,6\n2023-11-15 00:00,5,6\n", "r.csv:3: TIMESTAMP: must be finite and >="),
        ("r.jsonl", '{"arrival_s": 0, "prompt_tokens": 5, "output_tokens": 6}\n{"arrival', "r.jsonl:2: must be a JSON"),
        ("r.jsonl", "[1, 2, 3]\n", "r.jsonl:1: must be a JSON object, got '[1, 2, 3]'"),
        ("r.jsonl", "\n", "r.jsonl: must not be empty"),
        ("r.jsonl", '{"arrival_s": 0, "prompt_tokens": 5, "output_tokens": 6}\n\n{}', "r.jsonl:3: arrival_s: required"),
        (
            "r.jsonl",
            '{"arrival_s": 0, "prompt_tokens": true, "output_tokens": 6}',
            "r.jsonl:1: prompt_tokens: must be a number, got True",
        ),
        (
            "r.jsonl",
            '{"arrival_s": NaN, "prompt_tokens": 5, "output_tokens": 6}',
            "r.jsonl:1: arrival_s: must be finite and >= 0, got nan",
        ),
        (
            "r.jsonl",
            '{"arrival_s": 0, "prompt_tokens": null, "output_tokens": 6}',
            "r.jsonl:1: prompt_tokens: must be a number",
        ),
    ],
)
def test_broken_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        read_requests(written(tmp_path, name, text))
    assert message in str(error.value)


def test_gzip_and_what_is_left_of_it(tmp_path: Path) -> None:
    path = tmp_path / "r.csv.gz"
    path.write_bytes(gzip.compress((OWN + "0,5,6\n" * 500).encode()))
    assert len(read_requests(path).arrival_s) == 500
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        read_requests(path)
    path.write_bytes(b"no gzip at all")
    with pytest.raises(DataError, match="cannot be read"):
        read_requests(path)


def test_missing_folder_and_foreign_encoding(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_requests(tmp_path / "none.csv")
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        read_requests(tmp_path / "d.csv")
    (tmp_path / "r.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        read_requests(tmp_path / "r.csv")


def test_lines_beyond_the_first_chunk(tmp_path: Path) -> None:
    rows = ["0,5,6"] * 20_000
    rows[17_000] = "0,5,x"
    with pytest.raises(DataError, match=r"r\.csv:17002: output_tokens: must be a number, got 'x'"):
        read_requests(written(tmp_path, "r.csv", OWN + "\n".join(rows)))


def test_column_of_text(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, "t.csv", "a,b\n1,x\n"))
    assert numbers(table, "a").tolist() == [1.0]
    with pytest.raises(DataError, match=r"t\.csv:2: b: must be a number, got 'x'"):
        numbers(table, "b")


@pytest.mark.reference
@pytest.mark.parametrize(
    ("name", "requests", "prompt_tokens", "span_s"),
    [
        ("azure/data/AzureLLMInferenceTrace_conv.csv", 19_366, 22_361_870, 3501.7),
        ("azure/data/AzureLLMInferenceTrace_code.csv", 8_819, 18_059_974, 3435.9),
        ("mooncake/conversation_trace.jsonl", 12_031, 144_793_823, 3537.0),
    ],
)
def test_published_traces(reference_data: Path, name: str, requests: int, prompt_tokens: int, span_s: float) -> None:
    columns = read_requests(reference_data / "requests" / name)
    assert len(columns.arrival_s) == requests
    assert columns.arrival_s[0] == 0
    assert columns.arrival_s[-1] == pytest.approx(span_s, abs=0.1)
    assert columns.prompt_tokens.sum() == prompt_tokens
