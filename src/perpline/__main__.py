"""`python -m perpline` is the command line."""

import sys

from perpline.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
