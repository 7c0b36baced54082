"""Numbers and tables as text: for consoles, commands and error messages. Knows nothing of their meaning."""

from __future__ import annotations

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], left: int = 1, indent: str = "") -> list[str]:
    """Rows of cells as lines with columns two spaces apart.

    Args:
      rows: rows with equal numbers of cells.
      left: number of first columns that are aligned to the left; the others are aligned to the right.
      indent: beginning of each line.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = (
        (cell.ljust(width) if column < left else cell.rjust(width) for column, (cell, width) in enumerate(cells))
        for cells in (zip(row, widths, strict=True) for row in rows)
    )
    return [(indent + "  ".join(cells)).rstrip() for cells in aligned]


def short(number: float) -> str:
    """Three digits and a letter: 950, 18.2k, 76.9M, 2.85B."""
    for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= limit * 0.9995:
            scaled = number / limit
            return f"{scaled:.0f}{letter}" if abs(scaled) >= 99.95 else f"{scaled:.3g}{letter}"
    return f"{number:.0f}" if abs(number) >= 99.5 else f"{number:.3g}"


def duration(seconds: float) -> str:
    """The two largest units: 8s, 2m10s, 3h05m, 12d04h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"
