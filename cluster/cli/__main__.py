"""`python -m cluster.cli`: the command line without an installed script, as jobs run it."""

import sys

from cluster.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
