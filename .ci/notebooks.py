"""Runs notebooks from top to bottom, each in an empty directory: python .ci/notebooks.py [--write] NOTEBOOK...

--write stores the outputs: without standard error, which has the progress lines, and figures with a palette.
"""

import argparse
import base64
import io
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

SECONDS = 1200  # of a cell; a notebook takes a few minutes
BYTES = 400_000


def with_palette(png: str) -> str:
    """A figure in at most 256 colors, which takes a third of the bytes and looks the same."""
    smaller = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        image.convert("RGB").quantize(256).save(smaller, format="PNG", optimize=True)
    return base64.b64encode(smaller.getvalue()).decode()


def to_store(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook as it is committed."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number:02d}", {}
        if cell.cell_type == "code":
            stored: list[nbformat.NotebookNode] = []
            for output in cell.outputs:
                if output.get("name") == "stderr":
                    continue
                # Where the stream was cut is chance.
                if stored and output.get("name") == "stdout" == stored[-1].get("name"):
                    stored[-1].text += output.text
                else:
                    stored.append(output)
            cell.outputs = stored
            for output in stored:
                if "image/png" in output.get("data", {}):
                    output.data = {"image/png": with_palette(output.data["image/png"])}
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="store the outputs")
    parser.add_argument("notebooks", nargs="+", type=Path)
    arguments = parser.parse_args()
    for file in arguments.notebooks:
        notebook, began = nbformat.read(file, as_version=4), time.monotonic()
        with tempfile.TemporaryDirectory() as directory:
            resources = {"metadata": {"path": directory}}
            try:
                NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources=resources).execute()
            except CellExecutionError as error:
                sys.exit(f"error: {file}: {error}")
        print(f"{file}: {time.monotonic() - began:.0f} s", flush=True)
        text = nbformat.writes(to_store(notebook)) + "\n"
        if arguments.write:
            file.write_text(text, encoding="utf-8")
        if len(text) > BYTES:
            sys.exit(f"error: {file}: it has {len(text):,} bytes, more than {BYTES:,}; draw smaller figures")
        if directory in text:
            sys.exit(f"error: {file}: its outputs name the directory of this run, {directory}")


if __name__ == "__main__":
    main()
