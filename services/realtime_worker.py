"""`python -m services.realtime_worker`: the worker fed by REST, `perpline run --rest`."""

import sys

from perpline.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["run", "--rest", *sys.argv[1:]]))
