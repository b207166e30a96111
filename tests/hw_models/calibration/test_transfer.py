import numpy as np

from moesim.hw_models.calibration.fit import Settings
from moesim.hw_models.calibration.measured import Measured, Source, group_numbers
from moesim.hw_models.calibration.tables import product_table
from moesim.hw_models.calibration.transfer import CHIPS, Sample, _processor, transfer
from moesim.hw_models.device import load_device
from moesim.hw_models.gpu import GPU

TRUE = {
    "formats.bf16.sustained": 0.8,
    "dram_sustained": 0.85,
    "kernel_latency": 2e-6,
    "tile_latency": 1e-6,
    "split_latency": 2e-6,
    "step_latency": 1e-10,
    "exposed": 0.2,
    "wave_tail": 0.5,
    "l2_bytes_per_flop": 0.02,
}


def sample(name: str) -> Sample:
    n, k, m = (part.ravel() for part in np.meshgrid([256, 4096], [1024, 8192], [1, 16, 100, 1000, 8192], indexing="ij"))
    table = product_table(m, n, k, "bf16")
    processor = load_device(name).processor
    assert isinstance(processor, GPU)
    source = Source("nobody", name, "vllm", "0", "test")
    blank = Measured(table, np.ones(len(table)), group_numbers([n, k]), source, {})
    untimed = Sample(processor.config, blank, CHIPS[name])
    time_s = _processor(untimed, TRUE, "gemm").price(untimed.table).time_s
    return Sample(processor.config, Measured(table, time_s, blank.group, source, {}), CHIPS[name])


def test_gpus_of_one_law_predict_each_other_where_scaling_by_peak_does_not() -> None:
    sources = [sample("a100-sxm"), sample("rtx-pro-6000")]
    found = transfer(sources, sample("h200-sxm"), "gemm", Settings(starts=2, evaluations=30))
    assert found.nearest == "rtx-pro-6000"
    assert found.shared_physics is not None
    assert found.shared_baseline is not None
    assert found.shared_physics.rows == found.physics.rows == 20
    assert found.physics.mean < 0.1
    assert found.shared_baseline.mean > 3 * found.physics.mean
