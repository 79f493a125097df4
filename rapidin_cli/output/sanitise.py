"""Make hostile text harmless to look at: training data and generations are not ours."""

import re

# What a reader cannot see or what reorders what they see: controls, soft hyphen, zero-width and
# bidirectional marks, line separators, lone surrogates, tag characters. Newline, tab and the
# joiners U+200C and U+200D stay, since many scripts need them. HIDDEN in report.js is the same.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)


def visible(text: str) -> str:
    """Return the text with control, invisible and bidi characters spelled out as ``⟨U+202E⟩``."""
    return _HIDDEN.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", text)


def one_line(text: str, width: int) -> str:
    """Return the text on one line of at most `width` characters, made visible."""
    flat = " ".join(visible(text).split())
    return flat if len(flat) <= width else flat[: max(0, width - 1)] + "…"
