"""`python -m services.realtime_worker_ws`: the worker fed by WebSocket, `perpline run`."""

import sys

from perpline.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
