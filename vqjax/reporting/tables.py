"""Aligned tables of numbers, each with the protocol behind it."""

import shutil
import textwrap
from collections.abc import Sequence

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


def markdown_table(rows: Sequence[tuple[str, str, str]]) -> str:
    """Lay out (name, value, protocol) rows as a Markdown table.

    Args:
      rows: The name, the value as it is printed, and the protocol.

    Returns:
      Lines joined by newlines.

    Example:
      >>> print(markdown_table([("psnr", "24.10", "dB, mean over images")]))
      | metric | value | protocol |
      | :--- | ---: | :--- |
      | psnr | 24.10 | dB, mean over images |
    """
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in [HEADER, *rows]]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    return "\n".join([lines[0], "| :--- | ---: | :--- |", *lines[1:]])
