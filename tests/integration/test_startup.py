"""What a command imports is what it needs: a LoRA on a Llama needs torch and transformers only.

CPU seconds are measured by tests/benchmarks/startup.py; here nothing is timed.
"""

import json
import os
import subprocess
import sys

import pytest

from rapidin_cli import Project
from tests.support import forked, tiny

TELL = (
    "import atexit, json, sys\n"
    "atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))\n"
)
UNWANTED = {
    *("peft", "bitsandbytes", "numba", "bm25s", "ray", "s3fs", "botocore", "aiohttp", "pyarrow"),
    *("pandas", "datasets", "scipy", "sklearn", "tensorflow", "jax", "torchvision", "torchaudio"),
    *("PIL", "trl", "matplotlib", "IPython"),
}
HEAVY = ("torch._dynamo", "torch._inductor", "torch.distributed", "torch._functorch", "sympy")


def modules(folder, code, *arguments):
    """Names of all that a new process has imported when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", TELL + code, *arguments],
        cwd=folder, env={**os.environ, "COLUMNS": "100"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """A project whose words were indexed by an earlier question, and the arguments of another."""
    folder = tiny.project(tmp_path_factory.mktemp("startup"), 12)
    # Files of the last seconds are known by their content: a later question would read them anew.
    os.utime(folder / "data.jsonl", (0, 0))
    Project.open(folder).cache()
    arguments = ("retrieve", "--exact", "0", "--prompt", "Where is the cat?", "--response", "Here.")
    done = forked.rin(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return folder, arguments


def test_a_question_imports_what_it_needs(asked):
    folder, arguments = asked
    code = "from rapidin_cli.commands.main import main\nmain()\n"
    found = modules(folder, code, *arguments)
    assert {name.partition(".")[0] for name in found} & UNWANTED == set()
    assert "transformers.trainer" not in found

    # Of the compiler and what is distributed, transformers itself imports some, and no more is.
    code = "from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM\n"
    theirs = modules(folder, code)
    assert {name for name in found if name.startswith(HEAVY)} - theirs == set()
