#!/bin/bash
# WHAT IT IS FOR: training on machines that come and go. Start this on one to four of them:
#
#     HEAD=node1 launch/torchrun/elastic.sh [flags of train]     # first on node1, then on others
#
# When a machine is lost, all processes start again from the newest checkpoint; when one joins or
# leaves (Ctrl-C, SIGTERM), all save first and nothing is done twice. The weights do not depend on
# who was there. HEAD must stay. To stop the run, interrupt all machines within seconds; a STOP
# file or SIGUSR1 only makes them save and start again.

# WHAT TO EDIT, or to set in the environment
HEAD=${HEAD:?the name or address of the machine that stays}
PORT=${PORT:-29500}       # free on HEAD, and not closed by a firewall
NODES=${NODES:-1:4}       # fewest and most machines
PROCESSES=${PROCESSES:-1} # on each machine; with GPUs: as many as there are
MAX_RESTARTS=${MAX_RESTARTS:-100}
RUN=${RUN:-sinlstm}       # machines with the same RUN, HEAD and PORT find each other
JOIN_S=${JOIN_S:-10}      # how long enough machines wait for more, up to the most

# DERIVED VALUES
set -eu
threads=$(($(nproc) / PROCESSES))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))}
# A new set of processes must not read what the last one left in a store that all sets share:
# https://github.com/pytorch/pytorch/issues/135712
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# THE COMMAND (a machine that is silent for 3 x 2 s is lost)
exec torchrun --nnodes "$NODES" --nproc-per-node "$PROCESSES" --max-restarts "$MAX_RESTARTS" \
    --rdzv-backend c10d --rdzv-endpoint "$HEAD:$PORT" --rdzv-id "$RUN" \
    --rdzv-conf "last_call_timeout=$JOIN_S,keep_alive_interval=2" -m sinlstm_dist.train "$@"
