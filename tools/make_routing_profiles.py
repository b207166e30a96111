"""Make the profiles in configs/routing from published recordings.

    python tools/make_routing_profiles.py <folder> [<output folder>]

The folder holds
- gpt-oss-20b/gpt-oss-20b_decode_top4_ids.npz and ..._samples.csv: per-token routing of
  AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting (Hugging Face, Apache-2.0), one uint8[step, layer, rank] per request;
- mixtral-8x7b-mmlu/frac_vecs.npz: ajtejankar/mixtral-vis-moe (Apache-2.0), shares of selections
  float16[question, layer, expert] for each of 57 subjects of MMLU;
- olmoe/expert_counts.csv: allenai/OLMoE (Apache-2.0), selections of experts in layers 0, 7 and 15 over 5 data sets.

The results hold statistics only, and are the same on every run on one machine.
"""

import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim.workloads.routing_files import read_routing_trace, write_routing_profile
from moesim.workloads.routing_fit import fit_profile
from moesim.workloads.routing_profile import RoutingProfile, limit_shares
from moesim.workloads.routing_states import Domains

SHIPPED = Path(__file__).resolve().parents[1] / "configs/routing"
GPT_OSS = "AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting (Apache-2.0)"
MMLU = "14,042 questions of MMLU in 57 subjects, ajtejankar/mixtral-vis-moe (Apache-2.0)"
OLMOE = "selections in layers 0, 7 and 15 of 16 over 5 data sets, allenai/OLMoE (Apache-2.0)"
OLMOE_LAYERS = (0, 7, 15)


def gpt_oss(folder: Path) -> RoutingProfile:
    """Everything that a trace of tokens shows."""
    trace = read_routing_trace(folder / "gpt-oss-20b/gpt-oss-20b_decode_top4_ids.npz")
    return fit_profile(replace(trace, source=GPT_OSS))


def mixtral_mmlu(folder: Path) -> RoutingProfile:
    """Popularity by subject; every question counts the same."""
    with np.load(folder / "mixtral-8x7b-mmlu/frac_vecs.npz") as subjects:
        shares = {name: subjects[name].astype(np.float64) for name in sorted(subjects.files)}
    weight = np.array([len(questions) for questions in shares.values()], dtype=np.float64)
    return of_domains("mixtral-8x7b", MMLU, 2, shares, weight, np.stack([q.mean(axis=0) for q in shares.values()]))


def olmoe(folder: Path) -> RoutingProfile:
    """Popularity by data set, each of which counts the same."""
    counts: dict[str, NDArray[np.float64]] = {}
    with (folder / "olmoe/expert_counts.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["model"] == "olmoe" and row["kind"] == "topk":
                table = counts.setdefault(row["domain"], np.zeros((len(OLMOE_LAYERS), 64)))
                table[OLMOE_LAYERS.index(int(row["layer"])), int(row["expert"])] = int(row["count"])
    names = sorted(counts)
    loads = np.stack([counts[name] for name in names])
    return of_domains("olmoe-1b-7b", OLMOE, 8, names, np.ones(len(names)), loads)


def of_domains(
    model: str,
    source: str,
    top_k: int,
    names: object,
    weight: NDArray[np.float64],
    loads: NDArray[np.float64],
) -> RoutingProfile:
    """A profile of loads [domain, layer, expert]."""
    weight /= weight.sum()
    popularity = limit_shares(loads.reshape(-1, loads.shape[2]), top_k).reshape(loads.shape)
    domains = Domains(tuple(names), weight, popularity)  # type: ignore[arg-type]
    mean = np.einsum("d,dle->le", weight, popularity)
    return RoutingProfile(model, source, top_k, mean, domains=domains)


def main(folder: str, output: str | Path = SHIPPED) -> None:
    """Read the recordings in `folder`, write their profiles to `output`, and say what they hold."""
    for name, make in (("gpt-oss-20b", gpt_oss), ("mixtral-8x7b-mmlu", mixtral_mmlu), ("olmoe-1b-7b", olmoe)):
        profile, path = make(Path(folder)), Path(output) / f"{name}.npz"
        write_routing_profile(profile, path, np.float32)
        peak = (profile.popularity.max(axis=1) * profile.experts).mean()
        facts = f"{path.stat().st_size:,} bytes, busiest expert over mean expert, mean of layers: {peak:.3f}"
        print(f"{path}: {profile.source}; {facts}")


if __name__ == "__main__":
    main(*sys.argv[1:])
