"""`python -m sinlstm_dist.verify`"""

import sys

from sinlstm_dist import program
from sinlstm_dist.verify.command import main

if __name__ == "__main__":
    sys.exit(program.run(main))
