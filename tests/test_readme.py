"""The README's examples for one's own model run as printed."""

import re
from pathlib import Path

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_examples_run_and_keep_their_promises():
    names = {}
    examples = re.findall(r"<!-- tested -->\n```python\n(.*?)```", README, re.DOTALL)
    assert len(examples) == 2
    for code in examples:
        exec(compile(code, "README.md", "exec"), names)
    evaluated = names["vq"].apply(names["variables"], names["z"])
    assert (names["vectors"] == evaluated.quantized).all()
    assert names["out"].indices.shape == (8, 16, 16)


def test_every_file_it_names_exists():
    root = Path(__file__).parents[1]
    for path in re.findall(r"\]\(((?:vqjax|configs|docs)[^)#]*)\)", README):
        assert (root / path).exists(), path
