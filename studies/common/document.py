"""A document whose measured parts are generated: they stand between markers, and the rest is left alone."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from vqjax.errors import UserError
from vqjax.reporting import atomic_file


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lays out a Markdown table, the first column to the left and the others to the right.

    Args:
      header: Names of the columns.
      rows: Cells as they shall be printed.

    Returns:
      Lines joined by newlines.

    Example:
      >>> print(table(["estimator", "PSNR"], [["rotation", "23.0"]]))
      | estimator | PSNR |
      | :--- | ---: |
      | rotation | 23.0 |
    """
    lines = [header, [":---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def fill(document: str, parts: Mapping[str, str]) -> str:
    """Replaces the generated parts of a document.

    Args:
      document: Markdown with ``<!-- generated: NAME -->`` and ``<!-- end -->`` around each part.
      parts: The new content by name.

    Returns:
      The document; filling it again with the same parts gives the same text.

    Raises:
      UserError: The document lacks one of the parts.

    Example:
      >>> text = "Before\\n<!-- generated: numbers -->\\nold\\n<!-- end -->\\nAfter"
      >>> print(fill(text, {"numbers": "new"}))
      Before
      <!-- generated: numbers -->
      new
      <!-- end -->
      After
    """
    for name, content in parts.items():
        pattern = rf"(<!-- generated: {re.escape(name)} -->\n).*?(<!-- end -->)"
        document, count = re.subn(
            pattern, lambda match, content=content: f"{match[1]}{content}\n{match[2]}", document, flags=re.S
        )
        if count == 0:
            raise UserError(
                f"The document has no part {name!r}: put the lines '<!-- generated: {name} -->' and '<!-- end -->' "
                "where it shall stand."
            )
    return document


def write_filled(path: Path, title: str, parts: Mapping[str, str]) -> None:
    """Fills the generated parts of a document on the disk, which is made of them alone if there is none.

    Args:
      path: Of the document.
      title: Its heading, where it is made.
      parts: The content by name.
    """
    text = path.read_text() if path.exists() else skeleton(title, list(parts))
    with atomic_file(path) as file:
        file.write(fill(text, parts).encode())


def skeleton(title: str, names: Sequence[str]) -> str:
    """A document of generated parts alone, to be filled.

    Args:
      title: Its heading.
      names: Of the parts.

    Returns:
      Markdown.

    Example:
      >>> print(skeleton("Results", ["numbers"]))
      # Results
      <BLANKLINE>
      <!-- generated: numbers -->
      <!-- end -->
      <BLANKLINE>
    """
    return "\n\n".join([f"# {title}", *(f"<!-- generated: {name} -->\n<!-- end -->" for name in names)]) + "\n"
