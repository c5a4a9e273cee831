"""Aligned tables of numbers, each with the protocol behind it."""

import shutil
import textwrap
from collections.abc import Collection, Sequence

HEADER = ("metric", "value", "protocol")


def metrics_table(rows: Sequence[tuple[str, str, str]], *, width: int | None = None) -> str:
    """Lay out (name, value, protocol) rows as text for a terminal.

    Args:
      rows: The name, the value as it is printed, and the protocol.
      width: Columns to stay within, by wrapping the protocols; None takes the width of the terminal.

    Returns:
      Lines joined by newlines, values aligned at their right edge.

    Example:
      >>> print(metrics_table([("psnr", "24.10", "dB, mean over images"), ("images", "64", "count")], width=60))
      metric  value  protocol
      ------  -----  --------------------
      psnr    24.10  dB, mean over images
      images     64  count
    """
    width = width or shutil.get_terminal_size().columns
    name_width, value_width = (max(len(row[column]) for row in [HEADER, *rows]) for column in (0, 1))
    # A terminal too narrow for the notes gets long lines rather than one word per line.
    note_width = max(width - name_width - value_width - 4, 24)
    wrapped = [(name, value, textwrap.wrap(note, note_width) or [""]) for name, value, note in rows]
    longest_note = max(len(line) for _, _, lines in [("", "", [HEADER[2]]), *wrapped] for line in lines)
    table = [
        (HEADER[0], HEADER[1], HEADER[2]),
        ("-" * name_width, "-" * value_width, "-" * longest_note),
    ]
    for name, value, lines in wrapped:
        table.append((name, value, lines[0]))
        table.extend(("", "", line) for line in lines[1:])
    return "\n".join(f"{name:<{name_width}}  {value:>{value_width}}  {note}".rstrip() for name, value, note in table)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """Lay out a Markdown table.

    Args:
      header: Names of the columns.
      rows: Cells as text.
      left: Columns aligned at their left edge; all others at their right.

    Returns:
      Lines joined by newlines.

    Example:
      >>> print(markdown_table(["estimator", "PSNR"], [["rotation", "23.0"]]))
      | estimator | PSNR |
      | :--- | ---: |
      | rotation | 23.0 |
    """
    edges = [":---" if column in left else "---:" for column in range(len(header))]
    # Names of files may hold anything.
    lines = [[" ".join(cell.split("\n")).replace("|", r"\|") for cell in line] for line in (header, edges, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
