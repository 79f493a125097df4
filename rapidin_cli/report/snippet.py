"""A line from an example: the part around its strongest token."""

from collections.abc import Mapping
from typing import Any

from rapidin_cli.output.sanitise import one_line

View = Mapping[str, Any]


def snippet(example: View, width: int) -> str:
    """Return prompt and response in at most `width` characters.

    The prompt gets a third. The response is cut to the part around the learnt token with the
    largest influence, if token scores are known; cuts are marked.
    """
    prompt = one_line(example["prompt"], width // 3)
    room = width - len(prompt) - 3
    return f"{prompt} → {_around_strongest(example, room)}"


def _around_strongest(example: View, room: int) -> str:
    training = example["training"]
    if not training:
        return one_line(example["response"], room)
    strongest = max(range(len(training)), key=lambda s: abs(training[s][1]))
    before = "".join(text for text, _ in training[:strongest])
    after = "".join(text for text, _ in training[strongest:])
    # Words before it take a third at the most, and less where the text ends soon after.
    lead = max(room // 3, room - len(after))
    start = max(0, len(before) - lead)
    mark = "…" if start else ""
    return mark + one_line(before[start:] + after, room - len(mark))
