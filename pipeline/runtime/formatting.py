"""Numbers, durations and sizes as a person reads them, in the terminal and in the report."""


def number(value: float | None) -> str:
    """A metric for a table cell: three decimals, whole numbers without."""
    if value is None:
        return "–"
    if isinstance(value, int) or (float(value).is_integer() and abs(value) > 1):
        return f"{int(value):,}"
    return f"{value:.3f}" if abs(value) < 1000 else short(value)


def short(value: float) -> str:
    """A number as an axis has room for it."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:.4g}" if size >= 1 else f"{value:.3g}"


def count(value: float | None) -> str:
    """A count with its thousands set apart."""
    return f"{int(value):,}" if isinstance(value, int | float) else "–"


def counted(value: int, noun: str) -> str:
    """A count with its noun, which has an s unless there is one: ``1 row``, ``1,200 rows``."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def duration(seconds: object) -> str:
    """Seconds as hours, minutes or seconds, whichever a person would say."""
    if not isinstance(seconds, int | float):
        return "–"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def memory(size: object) -> str:
    """Bytes in kB, MB or GB."""
    if not isinstance(size, int | float) or not size:
        return "–"
    if size < 1e6:
        return f"{size / 1e3:.0f} kB"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def clip(text: str, length: int) -> str:
    """The text, shortened with an ellipsis where it is too long."""
    return text if len(text) <= length else text[: length - 1] + "…"
