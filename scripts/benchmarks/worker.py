"""The process of one contender: python -m benchmarks.worker '{"contender": "benchmarks.ours:step", ...}'

`contender` names a function of (specification, port). The number of threads comes from the environment.
"""

from __future__ import annotations

import importlib
import json
import sys

from benchmarks.port import Port


def main() -> None:
    port, specification = Port(), json.loads(sys.argv[1])
    module, _, name = specification["contender"].partition(":")
    run = getattr(importlib.import_module(module), name)
    port.imports_done()
    run(specification, port)


if __name__ == "__main__":
    main()
