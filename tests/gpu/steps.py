"""The steps of `make gpu-check`, in the order of what one would give up last."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        function: `module:function`; it gets the `Lab`.
        seconds: after which it is ended.
    """

    name: str
    kind: Literal["check", "timing"]
    function: str
    seconds: float


STEPS = [
    Step("sketch rows", "check", "tests.gpu.checks_rows:sketch_rows", 60),
    Step("factor rows", "check", "tests.gpu.checks_rows:factor_rows", 60),
    Step("rows in bfloat16", "check", "tests.gpu.checks_rows:bfloat16", 45),
    Step("scores of stored rows", "check", "tests.gpu.checks_rows:products", 45),
    Step("exact scores and forward mode", "check", "tests.gpu.checks_scores:exact_scores", 60),
    Step("exact scores in bfloat16", "check", "tests.gpu.checks_scores:exact_in_bfloat16", 45),
    Step("curvature", "check", "tests.gpu.checks_scores:curvature", 60),
    Step("too little memory", "check", "tests.gpu.checks_scores:too_little_memory", 45),
    Step("a project", "check", "tests.gpu.checks_project:a_project", 75),
    Step("two devices", "check", "tests.gpu.checks_project:two_devices", 60),
    Step("a large model", "timing", "tests.gpu.timings:large_model", 60),
    Step("caching over a training step, LoRA", "timing", "tests.gpu.timings:lora", 75),
    Step("a project of the large model", "timing", "tests.gpu.timings_project:caching", 60),
    Step("a question", "timing", "tests.gpu.timings_project:question", 75),
    Step(
        "caching over a training step, all weights", "timing", "tests.gpu.timings:all_weights", 60
    ),
    Step("scan", "timing", "tests.gpu.timings:scan", 40),
    Step("collecting curvature", "timing", "tests.gpu.timings_project:curvature", 75),
]
