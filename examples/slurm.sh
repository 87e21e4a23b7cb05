#!/bin/bash
# Full weights on two nodes of eight GPUs: sbatch examples/slurm.sh RECIPE [a.b=c ...]
# One task per GPU and no other launcher, so that SLURM's signal reaches every process: ten minutes before the time is over
# they finish the step, save and end, and the job queues itself again. A copy of the shards on each node: only gradients cross
# between them. The working directory is on a file system that all nodes share.
#SBATCH --job-name=r3
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail
recipe=${1:?usage: sbatch examples/slurm.sh RECIPE [a.b=c ...]}
shift
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=29500 WORLD_SIZE=$SLURM_NTASKS OMP_NUM_THREADS=8
words=(train "$recipe" "training.parallel.replicate=$SLURM_JOB_NUM_NODES" "$@")
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then words+=(--resume latest); fi

set +e
srun --kill-on-bad-exit=1 bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec python -m r3_rl "$@"' r3 "${words[@]}"
code=$?
if [ "$code" -eq 138 ]; then exec scontrol requeue "$SLURM_JOB_ID"; fi # 128 + SIGUSR1
exit "$code"
