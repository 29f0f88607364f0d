"""`python -m clustertools`: the command line, for callers that know an interpreter but no PATH."""

import sys

from clustertools.cli import main

if __name__ == "__main__":
    sys.exit(main())
