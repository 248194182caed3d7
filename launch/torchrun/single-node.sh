#!/bin/bash
# WHAT IT IS FOR: training on several processes of this machine, on CPUs or GPUs.
#
#     launch/torchrun/single-node.sh [flags of train]
#     PROCESSES=8 launch/torchrun/single-node.sh --config configs/large.toml
#
# SIGTERM, SIGINT, SIGUSR1 or SIGUSR2 to it makes all processes save and stop at the same step;
# the same command goes on.

# WHAT TO EDIT, or to set in the environment
PROCESSES=${PROCESSES:-2} # with GPUs: as many as there are

# DERIVED VALUES
set -eu
threads=$(($(nproc) / PROCESSES))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
export SINLSTM_DIST_WORLD_SIZE=$PROCESSES # any other is refused

# THE COMMAND (--standalone: any free port, so that two runs do not meet; --local-addr: the name of
# this machine need not resolve)
exec torchrun --standalone --local-addr 127.0.0.1 --nproc-per-node "$PROCESSES" \
    --signals-to-handle SIGTERM,SIGINT,SIGUSR1,SIGUSR2 -m sinlstm_dist.train "$@"
