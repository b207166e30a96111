import pickle

import pytest

from moesim.errors import CapacityError, ConfigError, DataError, InputError, NotedErrors

JOINED = ConfigError.join([ConfigError("a", "must be 1", 2), ConfigError("b", "must be 3")])


@pytest.mark.parametrize("error", [InputError("p", "r"), DataError("t.csv:3", "r", 7), CapacityError("p", "r"), JOINED])
def test_errors_reach_other_processes_unchanged(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), copy.args, copy.__dict__) == (str(error), error.args, error.__dict__)


def test_errors_that_were_noted_are_all_told():
    noted = NotedErrors()
    for place in ("a", "b"):
        with noted:
            raise DataError(place, "must be 1", 2)
    with pytest.raises(DataError, match=r"^a: must be 1, got 2\nb: must be 1, got 2$"):
        noted.raise_all()
