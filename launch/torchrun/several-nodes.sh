#!/bin/bash
# WHAT IT IS FOR: training on several machines, by starting this on each of them:
#
#     NODES=2 NODE_RANK=0 HEAD=node1 launch/torchrun/several-nodes.sh [flags of train]   # on node1
#     NODES=2 NODE_RANK=1 HEAD=node1 launch/torchrun/several-nodes.sh [flags of train]   # on the other
#
# All with the same flags, configuration files and versions. A signal to one of them makes all
# processes save and stop at the same step; the same commands go on.

# WHAT TO EDIT, or to set in the environment
NODES=${NODES:?how many machines}
NODE_RANK=${NODE_RANK:?this machine: 0 on HEAD, then 1, 2, ...}
HEAD=${HEAD:?the name or address of machine 0 that all others reach it by}
PORT=${PORT:-29500}       # free on HEAD, and not closed by a firewall
PROCESSES=${PROCESSES:-1} # on each machine; with GPUs: as many as there are
START_TIMEOUT_S=${START_TIMEOUT_S:-120} # how long the machines wait for each other
# Processes talk through the interface of their machine's own host name. Where that is the wrong one:
#export GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0

# DERIVED VALUES
set -eu
threads=$(($(nproc) / PROCESSES))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
export SINLSTM_DIST_WORLD_SIZE=$((NODES * PROCESSES)) # any other is refused

# THE COMMAND
exec torchrun --nnodes "$NODES" --node-rank "$NODE_RANK" --nproc-per-node "$PROCESSES" \
    --master-addr "$HEAD" --master-port "$PORT" --rdzv-conf "timeout=$START_TIMEOUT_S" \
    --signals-to-handle SIGTERM,SIGINT,SIGUSR1,SIGUSR2 -m sinlstm_dist.train "$@"
