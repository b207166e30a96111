"""What the host of a serving engine costs a step, beside what its devices do."""

from typing import NamedTuple


class HostTime(NamedTuple):
    """Host time of the steps of one replica; the terms are those of `SchedulerSettings`.

    Attributes:
        overhead_s: preparing a step.
        ahead: the step is prepared while the devices run the one before.
        exposed_s: of a step, that devices wait for although the host works ahead.
        per_sequence_s: the same, for each sequence of the data-parallel rank that has most.
        prompts_s: the same, more of it in a step with prompts.
        eager_operator_s: launching one operator from Python, as in steps with prompts.
    """

    overhead_s: float = 0.0
    ahead: bool = False
    exposed_s: float = 0.0
    per_sequence_s: float = 0.0
    prompts_s: float = 0.0
    eager_operator_s: float = 0.0

    @property
    def blocks(self) -> bool:
        """Whether devices ever wait for the host before a step."""
        return not self.ahead or max(self.exposed_s, self.per_sequence_s, self.prompts_s) > 0

    @property
    def runs_beside(self) -> bool:
        """Whether the host ever works beside the devices."""
        return self.ahead or self.eager_operator_s > 0

    @property
    def tasks(self) -> int:
        """Tasks of the host in a step's graph."""
        return self.blocks + self.runs_beside

    def blocking_s(self, sequences: int, *, has_prompts: bool) -> float:
        """Before the devices start."""
        exposed_s = self.exposed_s + self.per_sequence_s * sequences + (self.prompts_s if has_prompts else 0.0)
        return exposed_s + (0.0 if self.ahead else self.overhead_s)

    def beside_s(self, operators: int, *, has_prompts: bool) -> float:
        """Beside the devices, which are not done before the host is."""
        ahead_s = self.overhead_s if self.ahead else 0.0
        return max(ahead_s, self.eager_operator_s * operators if has_prompts else 0.0)
