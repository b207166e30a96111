"""Cases that ran in a configuration that was not chosen for them."""

import numpy as np

from moesim.hw_models.calibration.tables import expert_table
from moesim.hw_models.calibration.tuning import not_tuned


def test_cases_that_take_longer_than_their_work_are_found() -> None:
    rng = np.random.default_rng(0)
    tokens = np.array([1, 8, 64, 512, 4096])
    n, k, m = (part.ravel() for part in np.meshgrid([128, 512, 2048], [2048, 4096, 7168, 8192], tokens, indexing="ij"))
    table = expert_table(np.outer(m, [1, 2, 0, 1]), n, k, "bf16")
    case = np.arange(len(table)) // len(tokens)
    time_s = 2e-5 + table.weight_bytes_read / 4e12 + table.flops / 7e14 + 2 * table.read_bytes / 2e12
    time_s *= rng.uniform(0.9, 1.1, len(table))
    assert not not_tuned(table, time_s, case).any()
    slow = np.isin(case, [2, 7])
    found = not_tuned(table, np.where(slow, 4 * time_s, time_s), case)
    assert found.tolist() == slow.tolist()


def test_single_slow_batches_are_no_case() -> None:
    table = expert_table(np.outer(np.arange(1, 31), [1, 2, 0, 1]), np.full(30, 512), np.full(30, 2048), "bf16")
    time_s = np.full(30, 1e-4)
    time_s[3] = 1e-3
    assert not not_tuned(table, time_s, np.arange(30) // 10).any()
