"""The main flow: a scenario in, a result out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from moesim.configs.loader import Reference
from moesim.simulator.pipeline import Pipeline
from moesim.simulator.result import Result
from moesim.simulator.scenario import Setup, load_scenario, prepare
from moesim.simulator.serving import Observer, Progress, ServingLoop
from moesim.simulator.serving_record import ServingRecord
from moesim.simulator.summary import summarise
from moesim.simulator.tables import Served, result_tables

if TYPE_CHECKING:
    from moesim.simulator.timeline import TimelineRecorder

QUICKSTART = "quickstart"


def simulate(
    scenario: Reference = QUICKSTART,
    assignments: Sequence[str] = (),
    *,
    timeline: bool = False,
    on_progress: Progress | None = None,
) -> Result:
    """Simulate a scenario.

    Args:
        scenario: name of a shipped scenario, path of a YAML file, or mapping.
        assignments: edits `key.subkey=value`, such as `parallelism.tp=4`.
        timeline: keep a Perfetto trace of the run.
        on_progress: called with the number of finished requests as it grows.

    Raises:
        InputError: the scenario, or a file it names, breaks a rule.
    """
    setup = prepare(*load_scenario(scenario, assignments))
    return run(setup, timeline=timeline, on_progress=on_progress)


def run(setup: Setup, *, timeline: bool = False, on_progress: Progress | None = None) -> Result:
    """Simulate what `prepare` loaded."""
    pipelines = build_pipelines(setup)
    recorder = _recorder(pipelines) if timeline else None
    record = serve(setup, pipelines, on_progress=on_progress, on_step=recorder.note_step if recorder else None)
    served = Served(setup, pipelines, record)
    tables = result_tables(served)
    trace = recorder.trace(record) if recorder else None
    return Result(settings_of(setup), summarise(served, tables), tables, trace)


def _recorder(pipelines: Sequence[Pipeline]) -> "TimelineRecorder":
    from moesim.simulator.timeline import TimelineRecorder  # protobuf loads slowly

    return TimelineRecorder(pipelines)


def build_pipelines(setup: Setup) -> list[Pipeline]:
    """The hardware of each replica, pool after pool."""
    return [
        Pipeline.of(pool, number, setup.model, setup.router, setup.scenario.engine)
        for pool in setup.pools
        for number in range(pool.replicas)
    ]


def serve(
    setup: Setup,
    pipelines: Sequence[Pipeline],
    *,
    on_progress: Progress | None = None,
    on_step: Observer | None = None,
) -> ServingRecord:
    """Play the serving loop to its end."""
    scenario = setup.scenario
    loop = ServingLoop(
        setup.requests,
        pipelines,
        scenario.load_balancing,
        on_progress,
        on_step,
        scenario.warmup_requests,
        scenario.fast_forward,
    )
    return loop.run()


def settings_of(setup: Setup) -> dict[str, Any]:
    """Everything the run depended on, as plain data."""
    settings: dict[str, Any] = setup.scenario.model_dump(mode="json")
    for pool in setup.pools:
        settings["pools"].get(pool.name, settings)["parallelism"] = pool.parallelism.model_dump(mode="json")
    pools = [
        {
            "name": pool.name,
            "role": pool.role,
            "system": pool.system.name,
            "replicas": pool.replicas,
            "parallelism": pool.parallelism.model_dump(mode="json"),
        }
        for pool in setup.pools
    ]
    resolved = {
        "model": setup.model.name,
        "system": " + ".join(dict.fromkeys(pool.system.name for pool in setup.pools)),
        "devices": setup.devices,
        "pools": pools,
        "requests": setup.requests.source,
        "routing": setup.routing_source,
        "concurrency": setup.requests.concurrency,
    }
    return {**settings, "resolved": resolved}
