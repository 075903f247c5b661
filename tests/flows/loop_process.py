"""Runs one flow in a process of its own, as a worker does; prints its final state as JSON.

`python tests/flows/loop_process.py FLOW PARAMETERS_JSON`; the environment names the stack.
"""

import importlib
import json
import sys
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))


def main() -> None:
    """Run the flow and print {name, type, message, data}."""
    name, parameters = sys.argv[1], json.loads(sys.argv[2])
    flow = getattr(importlib.import_module(f"flows.{name}"), name)
    state = flow(**parameters, return_state=True)
    data = state.result(raise_on_failure=False)
    kept = None if isinstance(data, BaseException) else msgspec.to_builtins(data)
    found = {"name": state.name, "type": str(state.type), "message": state.message, "data": kept}
    print("STATE " + json.dumps(found))


if __name__ == "__main__":
    main()
