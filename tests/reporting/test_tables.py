"""Tables that fit the terminal, and Markdown that renders."""

from vqjax.reporting import markdown_table, metrics_table

ROWS = [("psnr", "24.1", "dB, " + "mean over images of the split, " * 4), ("entropy_bits_per_image", "485.22", "")]


def test_notes_are_wrapped_within_the_width():
    lines = metrics_table(ROWS, width=80).splitlines()
    assert max(map(len, lines)) <= 80
    assert {line.index("24.1") + 4 for line in lines if "24.1" in line} == {
        line.index("485.22") + 6 for line in lines if "485.22" in line
    }


def test_a_bar_in_a_cell_does_not_start_a_column():
    lines = markdown_table(["|q|", "", ""], [["a", "1", "x | y"]], left=(0, 2)).splitlines()
    assert lines == [r"| \|q\| |  |  |", "| :--- | ---: | :--- |", r"| a | 1 | x \| y |"]
