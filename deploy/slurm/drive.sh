#!/usr/bin/env bash
# The driver of a run on Slurm, on the first node, once all nodes have joined Ray. Ends with its exit code.
set -euo pipefail

code=0
(
    echo "$BASHPID" > "$ROLLCALL_NODE_FOLDER/driver.pid"
    exec env --default-signal=TERM python -m learner.main "$@"
) || code=$?
ray stop --force > /dev/null # symmetric-run would wait for what heeds no SIGTERM
exit "$code"
