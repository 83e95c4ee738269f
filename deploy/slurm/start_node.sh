#!/usr/bin/env bash
# A task of train.sbatch, one a node: join Ray as node number $1 of the job. Node 0 runs the driver, with the arguments
# that follow; the others stay as long as it does.
set -euo pipefail

number=$1
shift
address=$SLURM_LAUNCH_NODE_IPADDR:6379 # of the first node, where srun was called
role=rollout
if ((number < LEARNER_NODES)); then role=learner; fi
labels=(learner.labels=role=learner rollout.labels=role=rollout)
if ((SLURM_NNODES == 1)); then labels=(); fi

umask 077 # Ray opens its folder to everybody
mkdir -p "$ROLLCALL_NODE_FOLDER"
export RAY_ADDRESS=$address RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600
# Slurm sends SIGTERM to every process when it preempts a job. Here the driver alone heeds it: it saves a checkpoint, for
# which it needs the ranks.
exec env --block-signal=TERM ray symmetric-run --address "$address" --min-nodes "$SLURM_NNODES" \
    --num-cpus="$SLURM_CPUS_ON_NODE" --labels="role=$role" --temp-dir="$ROLLCALL_NODE_FOLDER/ray" --disable-usage-stats \
    -- deploy/slurm/drive.sh "${labels[@]}" resume=auto "$@"
