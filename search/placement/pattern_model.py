"""The exact model of one layer: which patterns the devices get, as a mixed-integer linear program.

    y[p]        whole    devices that hold pattern p
    z[e, k]     0 or 1   expert e has k replicas
    over        0 or 1   some device holds a pattern that is over the limit

    minimise over
    sum_p y[p] = devices
    sum_k z[e, k] = 1                                  for every expert e
    sum_{p contains (e, k)} y[p] = k z[e, k]           for every option (e, k)
    sum_{p over the limit} y[p] <= devices over

Loads appear nowhere: patterns are those that keep a limit, and the question is whether a limit can be kept at all. The
patterns over the limit are those of a known placement, from which the solver starts. The limit can be kept if the
minimum is 0; it is refuted as soon as the solver's bound is above 0.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.search.placement.patterns import Patterns
from moesim.search.placement.problem import Ints

_ABOVE_ZERO = 1e-3
"""Bounds on `over` that count as positive; far above HiGHS's feasibility tolerance of 1e-6."""


@dataclass(frozen=True)
class Answer:
    """What the solver found out about a limit; neither, if its time was up.

    Args:
        slots: int64[device, slot] a placement that keeps the limit, or None.
        refuted: whether no placement keeps it.
    """

    slots: Ints | None
    refuted: bool


@dataclass(frozen=True)
class _Columns:
    """Options and patterns of the model, with how many devices hold each pattern in the known placement."""

    expert: list[int]
    replicas: list[int]
    patterns: list[tuple[int, ...]]
    allowed: int  # patterns that keep the limit; those after them do not
    start: list[int]
    start_counts: Ints


def ask(patterns: Patterns, known: Ints, deadline_s: float) -> Answer:
    """Is there a placement of these patterns?

    Args:
        patterns: all that keep the limit.
        known: int64[device, slot] a placement to start from, which need not keep the limit.
        deadline_s: `time.monotonic()` at which the solver should stop; it may overrun.
    """
    from pyomo.contrib.appsi.solvers import Highs  # loads slowly

    columns = _columns(patterns, known)
    model = _model(columns, len(known))
    solver = Highs()
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        return Answer(None, refuted=False)
    solver.config.time_limit = left_s
    solver.config.warmstart = True
    solver.config.load_solution = False
    results = solver.solve(model)
    objective, bound = results.best_feasible_objective, results.best_objective_bound
    if bound is not None and bound > _ABOVE_ZERO:
        return Answer(None, refuted=True)
    if objective is None or round(objective) > 0:
        return Answer(None, refuted=False)
    results.solution_loader.load_vars()
    held = [round(model.y[p].value) for p in model.y]
    rows = [[columns.expert[o] for o in columns.patterns[p]] for p, count in enumerate(held) for _ in range(count)]
    return Answer(np.array(rows, dtype=np.int64), refuted=False)


def _columns(patterns: Patterns, known: Ints) -> _Columns:
    """The patterns that keep the limit, and behind them those of `known` that do not."""
    expert, replicas = patterns.expert.tolist(), patterns.replicas.tolist()
    counts = np.bincount(known.ravel(), minlength=max(expert) + 1)
    option_of = {pair: option for option, pair in enumerate(zip(expert, replicas, strict=True))}
    columns = [tuple(sorted(row)) for row in patterns.options.tolist()]
    allowed = len(columns)
    column_of = {options: column for column, options in enumerate(columns)}
    start = [0] * allowed
    for device in known.tolist():
        pairs = [(held, int(counts[held])) for held in device]
        for pair in pairs:
            if pair not in option_of:
                option_of[pair] = len(expert)
                expert.append(pair[0])
                replicas.append(pair[1])
        options = tuple(sorted(option_of[pair] for pair in pairs))
        if options not in column_of:
            column_of[options] = len(columns)
            columns.append(options)
            start.append(0)
        start[column_of[options]] += 1
    return _Columns(expert, replicas, columns, allowed, start, counts)


def _model(columns: _Columns, devices: int) -> Any:
    """The program of the module's docstring, with the known placement as values of its variables."""
    import pyomo.environ as pyo  # loads slowly

    model = pyo.ConcreteModel()
    model.y = pyo.Var(range(len(columns.patterns)), domain=pyo.NonNegativeIntegers, bounds=(0, devices))
    model.z = pyo.Var(range(len(columns.expert)), domain=pyo.Binary)
    model.over = pyo.Var(domain=pyo.Binary, initialize=int(columns.allowed < len(columns.patterns)))
    for pattern, count in enumerate(columns.start):
        model.y[pattern].value = count
    for option, (expert, replicas) in enumerate(zip(columns.expert, columns.replicas, strict=True)):
        model.z[option].value = int(columns.start_counts[expert] == replicas)
    _add_devices(model, devices)
    _add_one_count_per_expert(model, columns)
    _add_replicas_as_counted(model, columns)
    _add_over(model, columns, devices)
    model.keep_the_limit = pyo.Objective(expr=model.over)
    return model


def _add_devices(model: Any, devices: int) -> None:
    """sum_p y[p] = devices."""
    import pyomo.environ as pyo

    model.every_device_holds_a_pattern = pyo.Constraint(expr=_sum(list(model.y.values())) == devices)


def _add_one_count_per_expert(model: Any, columns: _Columns) -> None:
    """sum_k z[e, k] = 1."""
    import pyomo.environ as pyo

    options: dict[int, list[Any]] = {}
    for option, expert in enumerate(columns.expert):
        options.setdefault(expert, []).append(model.z[option])
    model.one_count = pyo.Constraint(list(options), rule=lambda _, expert: _sum(options[expert]) == 1)


def _add_replicas_as_counted(model: Any, columns: _Columns) -> None:
    """sum_{p contains (e, k)} y[p] = k z[e, k]."""
    import pyomo.environ as pyo
    from pyomo.core.expr.numeric_expr import LinearExpression

    holders: list[list[Any]] = [[] for _ in columns.expert]
    for pattern, options in enumerate(columns.patterns):
        for option in options:
            holders[option].append(model.y[pattern])

    def balance(_: Any, option: int) -> Any:
        held = holders[option]
        coefficients = [1.0] * len(held) + [-float(columns.replicas[option])]
        return LinearExpression(constant=0, linear_coefs=coefficients, linear_vars=[*held, model.z[option]]) == 0

    model.replicas_as_counted = pyo.Constraint(range(len(holders)), rule=balance)


def _add_over(model: Any, columns: _Columns, devices: int) -> None:
    """sum_{p over the limit} y[p] <= devices over."""
    import pyomo.environ as pyo

    over = [model.y[pattern] for pattern in range(columns.allowed, len(columns.patterns))]
    if over:
        model.patterns_over = pyo.Constraint(expr=_sum(over) <= devices * model.over)


def _sum(variables: list[Any]) -> Any:
    from pyomo.core.expr.numeric_expr import LinearExpression

    return LinearExpression(constant=0, linear_coefs=[1.0] * len(variables), linear_vars=variables)
