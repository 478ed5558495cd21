"""Numbers as a person reads them, by hand."""

from pipeline.runtime.formatting import count, duration, memory, number, short


def test_short_numbers():
    assert [short(v) for v in (0, 0.5, 12.3456, 12345, 2_500_000, 0.00012, -0.25)] == [
        "0", "0.5", "12.35", "12.3k", "2.5M", "1e-4", "-0.25",
    ]  # fmt: skip


def test_numbers_counts_durations_and_sizes():
    assert [number(v) for v in (None, 3, 3.0, 0.12345, 12345.5)] == ["–", "3", "3", "0.123", "12.3k"]
    assert [count(v) for v in (None, 1234567)] == ["–", "1,234,567"]
    assert [duration(v) for v in (None, 1.25, 59, 75, 3700)] == ["–", "1.2 s", "59 s", "1 min 15 s", "1 h 01 min"]
    assert [memory(v) for v in (0, 2_500, 2_500_000, 2_500_000_000)] == ["–", "2 kB", "2 MB", "2.5 GB"]
