"""From a pack of groups to log-probabilities, inside one process: loading, adapters, pack layout, attention, the
vision tower, the head. Patches of transformers are listed in `patches`. It imports `common` and the losses' inputs
from `learner.objective`."""
