"""Search spaces: the experiment's configuration tree with Ray Tune domains at the leaves (YAML, shipped as data).

Reading and checking a space needs neither Ray nor torch; only `tune_domains` imports Ray.
"""

from search_spaces.checking import SELECTION_METRICS, check_space
from search_spaces.domains import Domain, tune_domains
from search_spaces.space import SearchSpace, apply, available, axes, is_grid, load_space, override, trial_count, trials

__all__ = [
    "SELECTION_METRICS",
    "Domain",
    "SearchSpace",
    "apply",
    "available",
    "axes",
    "check_space",
    "is_grid",
    "load_space",
    "override",
    "trial_count",
    "trials",
    "tune_domains",
]
