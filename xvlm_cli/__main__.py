"""``python -m xvlm_cli``: the command line; the processes of a run are started so."""

import sys

from xvlm_cli.app import main

# the guard: loader processes that are spawned import this module again
if __name__ == "__main__":
    sys.exit(main())
