"""Files that outlive a crash: atomic writes, the run folder, checkpoints and their store, the point to resume from. It
imports `common` only."""
