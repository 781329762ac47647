#!/usr/bin/env bash
# One rank of a Slurm step: sets the variables that PyTorch and Composer need from Slurm's.
set -euo pipefail
export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS NODE_RANK=$SLURM_NODEID
export LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_NNODES))
export PYTHONUNBUFFERED=1
exec "$@"
