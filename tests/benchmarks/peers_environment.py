"""The environment in which the peers of `peers.py` run, made with pip."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]

# What works together on Python 3.11; transformers and peft are those of rin's environment.
INSTALL: dict[str, list[list[str]]] = {
    "bergson": [["bergson==2.5.1"]],
    "dattri-llm": [["dattri-llm==0.1.0", "dattri==0.3.0"]],
    "TRAK": [["traker==0.3.2"]],
    # It says Python < 3.11, and runs on later ones.
    "LogIX": [["einops", "pyyaml"], ["--no-deps", "--ignore-requires-python", "logix-ai==0.1.1"]],
}


def make_environment(folder: Path) -> tuple[Path, dict[str, str]]:
    """The peers' Python, and why peers are not in it; remove its folder to try again."""
    home = folder.absolute() / "peers-env"
    python, known = home / "bin/python", home / "failed.json"
    if not known.exists():
        print(f"installing the peers in {home} (a few minutes)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        pinned = [f"{name}=={version(name)}" for name in ("transformers", "peft")]
        base = [f"torch=={version('torch').split('+')[0]}", *pinned]
        failed = {}
        for peer, steps in INSTALL.items():
            why = [why for step in [base, *steps] if (why := install(python, step, pinned))]
            if why:
                failed[peer] = why[0]
        # Those of bergson's requirements do not import beside a CPU build of torch.
        pip(python, "uninstall", "-y", "torchvision", "torchaudio")
        known.write_text(json.dumps(failed))
    return python, json.loads(known.read_text())


def install(python: Path, what: list[str], pinned: list[str]) -> str:
    """Why pip did not install something, or an empty text."""
    done = pip(python, "install", *what, *([] if what[0] == "--no-deps" else pinned))
    lines = done.stderr.strip().splitlines() or ["no message"]
    said = [text for text in lines if text.startswith("ERROR")] or lines[-1:]
    return f"pip: {said[0]}" if done.returncode else ""


def pip(python: Path, *what: str) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-m", "pip", what[0], "-q", "--disable-pip-version-check", *what[1:]]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def process_environment(threads: int, work: Path) -> dict[str, str]:
    """Environment variables of a contender's process: so many threads, no GPU, no network."""
    return {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'storage'}",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(work / "hub"),
    }
