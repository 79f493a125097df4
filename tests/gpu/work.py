"""The process that takes the steps: `python -m tests.gpu.work JSON`, started by `tests.gpu`."""

import gc
import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

# A spinning pool on a few cores would slow the others' work.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

UNUSABLE = 3
"""Exit code: the device answers no more, and a fresh process is to go on."""


def main() -> int:
    told = json.loads(sys.argv[1])
    pipe = os.fdopen(told["events"], "w", buffering=1)

    def send(**event: Any) -> None:
        pipe.write(json.dumps(event) + "\n")

    # Not before the pipe is there: this takes seconds, and may fail.
    from tests.gpu.lab import Lab, NotHereError

    lab = Lab(told["device"], told["size"], told["folder"], lambda text: send(tell=text))
    send(machine=lab.machine())
    for name, place in told["steps"]:
        send(begin=name)
        module, function = place.split(":")
        lab.begin()
        status, error = "passed", ""
        try:
            getattr(importlib.import_module(module), function)(lab)
        except NotHereError as reason:
            status, error = "not here", str(reason)
        except Exception as problem:
            traceback.print_exc()
            status, error = "failed", last_line(problem)
            del problem
        if lab.failures:
            status = "failed"
            error = "; ".join([*lab.failures, *([error] if error else [])])
        usable = lab.settle()
        gc.collect()
        send(end=name, status=status, error=error, figures=lab.figures)
        if not usable:
            return UNUSABLE
    return 0


def last_line(problem: BaseException) -> str:
    """What went wrong and where, on one line."""
    frames = traceback.extract_tb(problem.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    said = traceback.format_exception_only(problem)[-1].strip().split("\n")[0]
    return f"{said[:400]}{place}"


if __name__ == "__main__":
    sys.exit(main())
