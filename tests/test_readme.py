"""The examples of README.md and CONTRIBUTING.md run as printed, and the files that they name exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [str(page.relative_to(ROOT)) for place in ("", "docs/", "benchmarks/") for page in ROOT.glob(f"{place}*.md")]


def run_examples(page, number):
    names = {"__name__": page}
    examples = re.findall(r"<!-- tested -->\n```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert len(examples) == number
    for code in examples:
        exec(compile(code, page, "exec"), names)
    return names


def test_the_examples_of_the_readme_run_and_keep_their_promises():
    names = run_examples("README.md", 3)
    evaluated = names["vq"].apply(names["variables"], names["z"])
    assert (names["vectors"] == evaluated.quantized).all()
    assert names["out"].indices.shape == (8, 16, 16)


@pytest.mark.parametrize("page", PAGES)
def test_every_file_it_names_exists(page):
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text()):
        assert (folder / link).exists(), link
