"""`python -m sinlstm_dist.verify`"""

import sys

from sinlstm_dist.command import as_program
from sinlstm_dist.verify.command import main

if __name__ == "__main__":
    sys.exit(as_program(main))
