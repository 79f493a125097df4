"""What computes rows: this process, processes on its devices, or a Ray cluster."""

import importlib.util
from collections.abc import Iterator, Sequence

from rapidin_cli.errors import UsageError
from rapidin_cli.work.devices import check_devices
from rapidin_cli.work.processes import ProcessPool
from rapidin_cli.work.worker import Arrays, Job, Pool, Ready, Tokens, Worker

LOCAL, RAY = "local", "ray"


class InlinePool:
    """One device: the work is done in this process."""

    def __init__(self, job: Job) -> None:
        self._worker = Worker(job)
        self.ready: Ready = self._worker.ready

    def run(self, batches: Sequence[Tokens]) -> Iterator[tuple[int, str, Arrays]]:
        """Yield (batch number, device, rows) as parts of batches are done."""
        for number, tokens in enumerate(batches):
            for rows in self._worker.parts(tokens):
                yield number, "", rows

    def close(self) -> None:
        """Nothing to end."""


def check_executor(executor: str, devices: str = "auto") -> None:
    """Refuse what is not available, before anything else is done.

    Raises:
        UsageError: there is no such executor, it is not installed, or it takes no devices; or
            not a device.
    """
    check_devices(devices)
    if executor not in (LOCAL, RAY):
        raise UsageError(f"there is no executor {executor!r}", hint=f"choose {LOCAL} or {RAY}")
    if executor == RAY and devices != "auto":
        raise UsageError(
            "--devices are those of this machine, and --executor ray uses those of a cluster",
            hint="omit --devices; --workers N starts N workers",
        )
    if executor == RAY and importlib.util.find_spec("ray") is None:
        raise UsageError("Ray is not installed", hint='pip install "rapidin[ray]"')


def open_pool(jobs: Sequence[Job], executor: str = LOCAL) -> Pool:
    """Start the workers and wait until the first has loaded its model.

    Args:
        jobs: of each worker.
        executor: `local` processes, or `ray` actors.
    """
    if executor == RAY:
        from rapidin_cli.work.ray_pool import RayPool

        return RayPool(jobs)
    return InlinePool(jobs[0]) if len(jobs) == 1 else ProcessPool(jobs)
