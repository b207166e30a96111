from moesim.configs.loader import shipped
from moesim.reports.style import OTHER, kind_of
from moesim.workloads.models import load_model
from moesim.workloads.operator_plan import OperatorPlan


def test_every_operator_of_every_shipped_model_has_a_kind():
    names = {operator.name for name in shipped("models") for operator in OperatorPlan(load_model(name)).operators}
    assert {name for name in names if kind_of(name) == OTHER} == set()
