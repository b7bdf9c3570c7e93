#!/bin/bash
# Two machines with eight GPUs each under SLURM: sbatch slurm.sh. One task per machine starts its ranks.
# SLURM's warning lets a job save before its time is over. --requeue starts it again after a node's failure or
# preemption, but nothing does at its time limit: submit it again, and it goes on from there.
#SBATCH --job-name=vlds
#SBATCH --nodes=2 --ntasks-per-node=1 --gpus-per-node=8
#SBATCH --time=24:00:00 --requeue --signal=TERM@120
MASTER=$(scontrol show hostnames | head -n 1)
export MASTER
# Seconds that torchrun gives ranks to save: its default is 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110
# shellcheck disable=SC2016 # each task reads its own SLURM_NODEID
srun --kill-on-bad-exit=1 bash -c 'exec torchrun --nnodes=$SLURM_NNODES --nproc_per_node=8 \
    --node_rank=$SLURM_NODEID --master_addr=$MASTER --master_port=29500 \
    -m vlds train vqa.yaml --resume auto'
