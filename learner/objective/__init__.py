"""The losses as pure functions of one record, and the advantages they use. `records` is what a loss may read, `losses`
lists them by name. That of sampled completions is put together of five parts, a file each: `advantages`, `ratios` (the
surrogate), `corrections`, `kl`, `aggregation`. Those of given answers are in `exact`. `mismatch` counts how far engine
and learner are apart. It imports `common` alone."""
