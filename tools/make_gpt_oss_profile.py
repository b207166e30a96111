"""Make configs/routing/gpt-oss-20b.npz from the published recording.

    python tools/make_gpt_oss_profile.py <folder> [<output.npz>]

The folder holds `gpt-oss-20b_decode_top4_ids.npz` and `gpt-oss-20b_decode_samples.csv`: the routing of
AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting (Hugging Face, Apache-2.0) as one array uint8[step, layer, rank] per
request. The result holds statistics only and is the same, byte for byte, on every run.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from moesim.workloads.routing_files import read_routing_trace, write_routing_profile
from moesim.workloads.routing_profile import RoutingProfile

PUBLISHED = "AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting (Apache-2.0)"
SHIPPED = Path(__file__).resolve().parents[1] / "configs/routing/gpt-oss-20b.npz"


def main(folder: str, output: str | Path = SHIPPED) -> None:
    """Read the recording in `folder`, write its profile to `output`, and say what it holds."""
    trace = read_routing_trace(Path(folder) / "gpt-oss-20b_decode_top4_ids.npz")
    profile = RoutingProfile.from_trace(replace(trace, source=PUBLISHED))
    write_routing_profile(profile, output, np.float32)
    peak = (profile.popularity.max(axis=1) * profile.experts).mean()
    print(f"{output}: {profile.source}; busiest expert over mean expert, mean of layers: {peak:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
