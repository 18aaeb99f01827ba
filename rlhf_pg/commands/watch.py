"""`rlhf-pg watch RUN_DIR`: the report of a run in a browser on this machine, as it goes on."""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path

from rlhf_pg.commands.parsing import add_command

PORT = 6060
LOOK_S = 1.0  # between two looks at the folder


def add_parser(subcommands) -> None:
    """Add the command to the parser."""
    help = "show a run's report in a browser on this machine, and follow the run"
    parser = add_command(subcommands, "watch", run, help, "runs/quickstart")
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path)
    parser.add_argument("--port", type=_port, default=PORT, help=f"to serve on; default: {PORT}, 0: any that is free")


def run(arguments: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C; print what becomes of the run. Returns the exit code."""
    from rlhf_pg.report.live_page import LiveRun, Server

    live = LiveRun(arguments.run_dir)
    with Server(live, arguments.port) as server:
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
        print(f"{arguments.run_dir}: {server.url}  (Ctrl-C ends)", flush=True)
        status = ""
        try:
            while True:
                state = live.state()
                if state.status != status:
                    status = state.status
                    print(f"{state.text} {state.detail}", flush=True)
                time.sleep(LOOK_S)
        except KeyboardInterrupt:
            server.shutdown()
            print("watch ended")
    return 0


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: a whole number up to 65535")
    return int(text)
