"""Errors from below become one sentence."""

import numpy as np
import pytest
import torch

from rapidin_cli.errors import ExitCode, RinError
from rapidin_cli.gradients.spec import GradientSpec
from rapidin_cli.models.checkpoints import Checkpoint
from rapidin_cli.output.sentences import translated
from rapidin_cli.work.processes import Member
from rapidin_cli.work.worker import Job


@pytest.mark.parametrize("allocate", [torch.empty, np.empty])
def test_memory_that_is_not_there_is_named(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate(2**56)
    problem, code = translated(caught.value)
    assert problem.message.startswith("out of memory: ")
    assert "\n" not in problem.message
    assert "batch_tokens" in problem.hint
    assert code == ExitCode.FAILURE


def exhaust(*_):
    """Stand in for a worker's whole work."""
    torch.empty(2**56)


def test_a_worker_without_memory_says_so_to_the_parent(tmp_path):
    job = Job(Checkpoint("none", tmp_path, None), GradientSpec(), "cpu", 1, "float32")
    member = Member(job, exhaust)
    try:
        with pytest.raises(RinError, match=r"^out of memory: "):
            member.wait_ready()
    finally:
        member.stop()


def test_a_cuda_device_says_which_and_how_much():
    error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.1 GiB."
    )
    message = translated(error)[0].message
    assert message == "out of memory: CUDA out of memory. Tried to allocate 2.00 GiB"


def test_what_nobody_expected_asks_for_a_report():
    assert "--debug" in translated(ZeroDivisionError("division by zero"))[0].hint
