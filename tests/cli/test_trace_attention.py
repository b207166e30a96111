"""`moesim trace attention`: a table, JSON, a figure, and what is refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moesim.workloads.attention_trace import COUNTS, MASSES, METADATA_KEY

LAYERS, HEADS, TOKENS = 3, 4, 60


@pytest.fixture
def recorded(folder):
    """`a.parquet`: keys rise with the position, head 0 looks at the last keys only."""
    rng = np.random.default_rng(0)
    position = np.arange(TOKENS, dtype=np.int32)
    keys = 1 + (rng.random((TOKENS, LAYERS * HEADS)) * position[:, np.newaxis]).astype(np.uint16)
    mass = np.full((TOKENS, LAYERS * HEADS), 0.25, np.float16)
    local = mass.copy()
    local[:, ::HEADS] = 0.95

    def lists(values):
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), LAYERS * HEADS)

    columns = {name: lists(keys) for name in COUNTS} | {name: lists(mass) for name in MASSES}
    index = {"request": np.zeros(TOKENS, np.int32), "position": position, "phase": np.zeros(TOKENS, np.uint8)}
    header = {
        "format": 1,
        "model": "tiny",
        "layers": LAYERS,
        "heads": HEADS,
        "sink_keys": 2,
        "local_keys": 8,
        "every": 1,
        "window_tokens": [0, 0, 0],
        "source": "made",
        "names": ["a"],
        "groups": [""],
        "first_decode_position": [50],
    }
    made = pa.table({name: pa.array(values) for name, values in index.items()} | columns | {"local_mass": lists(local)})
    pq.write_table(made.replace_schema_metadata({METADATA_KEY: json.dumps(header).encode()}), folder / "a.parquet")
    return keys.reshape(TOKENS, LAYERS, HEADS)


@pytest.mark.usefixtures("recorded")
def test_a_table_and_a_figure(moesim, folder):
    done = moesim("trace", "attention", "a.parquet", "-o", "a.svg")
    assert (done.code, done.err) == (0, "")
    assert "tiny, 3 layers of 4 heads" in done.out
    assert "local 3, sink 0, streaming 0, broad 9" in done.out
    assert (folder / "a.svg").stat().st_size > 1000


def test_json_has_every_head(moesim, recorded):
    document = json.loads(moesim("trace", "attention", "a.parquet", "--json", "--shortest", 30).out)
    kept = np.array(document["results"]["kept_fraction"]["keys_95"])
    visible = np.arange(30, TOKENS + 1)
    np.testing.assert_allclose(kept, (recorded[29:] / visible[:, np.newaxis, np.newaxis]).mean(axis=0))
    assert document["results"]["kind"][0] == ["local", "broad", "broad", "broad"]


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.parquet"], "none.parquet: no such file"),
        (["a.parquet", "--shortest", "0"], "--shortest: must be at least 1, got 0"),
        (["a.parquet", "--shortest", "99"], "must have tokens with a context of 99 at least, got 60"),
        (["a.parquet", "-o", "a.pdf"], "a.pdf: a figure must end in .png or .svg"),
    ],
)
def test_refusals(refused, arguments, message):
    assert message in refused("trace", "attention", *arguments)
