"""Numbers as people read them."""


def count(number: int, noun: str) -> str:
    """Return `1 row` or `2 rows`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def size(count: float) -> str:
    """Return bytes as people read them: `12 kB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def duration(seconds: float) -> str:
    """Return a time as people say it: `40 s`, `12 min`, `3.5 h`."""
    for unit, length in (("s", 60.0), ("min", 60.0), ("h", 48.0)):
        if seconds < length:
            few = unit != "s" and seconds < 10
            return f"{seconds:.1f} {unit}" if few else f"{max(1, round(seconds))} {unit}"
        seconds /= 60 if unit != "h" else 24
    return f"{seconds:,.1f} days"
