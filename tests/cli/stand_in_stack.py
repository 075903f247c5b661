"""A supervisor over stand-in parts that start in no time: run by path from tests/cli."""

import argparse
import socket
import sys
from pathlib import Path

from cli.children import Child, addresses
from cli.ports import bind
from cli.stack_file import read_stack
from cli.supervisor import Supervisor, one_per_home

SERVER = """
import http.server, os, socket, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = str(os.getpid()).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments): pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
server.socket.close()
server.socket = socket.socket(fileno=int(sys.argv[1]))
server.serve_forever()
"""
SLEEPER = "import time; time.sleep(600)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
DYING = "raise SystemExit(3)"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--tag", default="", help="changes the sleeper's command line")
    parser.add_argument("--with", dest="extra", choices=["dying", "stubborn"])
    options = parser.parse_args()
    run = (sys.executable, "-c")
    children = {
        "gateway": Child("gateway", (*run, SERVER, "{fd}"), options.port, holds_socket=True),
        "keeper": Child("keeper", (*run, SLEEPER, options.tag), grace_seconds=1),
    }
    if options.extra == "dying":
        children["dying"] = Child("dying", (*run, DYING))
    if options.extra == "stubborn":
        children["stubborn"] = Child("stubborn", (*run, STUBBORN), grace_seconds=0.3)
    worker = {"worker": Child("worker", (*run, SLEEPER), stop_phase=0, grace_seconds=1)}
    with one_per_home(options.home):
        listeners: dict[str, socket.socket] = {}
        if "gateway" not in read_stack(options.home).living:
            listeners["gateway"] = bind(options.port)
        Supervisor(
            options.home, children, addresses({"gateway": options.port}), listeners, worker
        ).run()


if __name__ == "__main__":
    main()
