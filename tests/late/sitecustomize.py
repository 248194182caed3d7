"""On PYTHONPATH, this makes rank 0 come late, as on a machine whose disk is slower."""

import os
import time

if "0" in (os.environ.get("RANK"), os.environ.get("OMPI_COMM_WORLD_RANK")):
    time.sleep(3)  # longer than command.LATE_S
