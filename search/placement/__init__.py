"""Where experts live so that the fullest device has little to do, with replicas of those that are used most.

`search_placement` is the way in. The objective, the constraints and the words are those of `problem.py`.
"""

from moesim.search.placement.balance import METHODS, BalancedPlacement, search_placement

__all__ = ["METHODS", "BalancedPlacement", "search_placement"]
