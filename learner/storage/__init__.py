"""Files that outlive a crash: atomic writes, the run folder, checkpoints and their store. It imports `common`
only."""
