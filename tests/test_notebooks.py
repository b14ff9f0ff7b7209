"""The notebooks run, and what is committed as their output is what they say."""

import re
import shutil
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

if not all(map(find_spec, ("nbclient", "nbformat", "ipykernel"))):
    pytest.skip("the notebooks extra is not installed", allow_module_level=True)

from notebooks import execute, read_notebook

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST_BYTES = 2_500_000
"""Of all together: pictures are small, or nobody clones them gladly."""
PLACE_OF_A_MACHINE = re.compile(
    r"(?<![\w.:/])/(home|root|tmp|work|Users|usr|var|opt|mnt|builds?)/|[A-Z]:\\\\|/site-packages/"
)
NOISE = re.compile(r" at 0x[0-9a-f]{6,}|127\.0\.0\.1:\d|localhost:\d|Warning: |\x1b\[|\r|\x08")

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_of(notebook):
    return [each for each in notebook.cells if each.cell_type == "code"]


def texts_of(cell) -> list[str]:
    """What a cell has printed, and the plain text of what it shows."""
    return [
        each.text if each.output_type == "stream" else each.data.get("text/plain", "")
        for each in cell.outputs
        if each.output_type in ("stream", "execute_result", "display_data")
    ]


def kinds_of(cell) -> list[tuple]:
    """Of each output what it is: a stream's name, or the types in which it is shown."""
    return [(each.get("name"), *sorted(each.get("data", ()))) for each in cell.outputs]


def numbers_and_words(text: str) -> tuple[list[float], str]:
    number = r"\d[\d,]*(?:\.\d+)?"
    return [float(each.replace(",", "")) for each in re.findall(number, text)], re.sub(rf"{number}|\s+", " ", text)


@cache
def everything_committed(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_there_are_five():
    assert len(NOTEBOOKS) == 5


@every_notebook
def test_notebook_runs_and_says_what_is_committed(path, tmp_path):
    """Numbers within a hundredth, since processors differ in the last bit of a score."""
    copy = Path(shutil.copy(path, tmp_path))
    committed, now = (code_of(each) for each in (read_notebook(path), execute(copy, tmp_path)))
    for before, after in zip(committed, now, strict=True):
        assert kinds_of(after) == kinds_of(before), before.source
        if "varies" in before.metadata.get("tags", []):
            continue
        for said, says in zip(texts_of(before), texts_of(after), strict=True):
            (promised, promised_words), (numbers, words) = numbers_and_words(said), numbers_and_words(says)
            assert words == promised_words
            assert numbers == pytest.approx(promised, rel=0.01, abs=0.011), before.source


@every_notebook
def test_cells_were_executed_once_from_top_to_bottom(path):
    cells = code_of(read_notebook(path))
    assert [each.execution_count for each in cells] == list(range(1, len(cells) + 1))
    assert any(each.outputs for each in cells)


@every_notebook
def test_no_error_and_no_complaint_is_committed(path):
    for cell in code_of(read_notebook(path)):
        assert not [each for each in cell.outputs if each.output_type == "error" or each.get("name") == "stderr"]


@every_notebook
def test_nothing_of_the_machine_or_the_moment_is_committed(path):
    notebook = read_notebook(path)
    assert not PLACE_OF_A_MACHINE.search(everything_committed(path))
    for cell in code_of(notebook):
        assert cell.metadata.keys() <= {"tags"}
        assert not NOISE.search("".join(texts_of(cell)))


@every_notebook
def test_first_cell_of_text_is_a_title_and_links_lead_somewhere(path):
    text = [each.source for each in read_notebook(path).cells if each.cell_type == "markdown"]
    assert text[0].startswith("# ")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", "".join(text)):
        assert (FOLDER / target).exists(), target


def test_pictures_are_small():
    assert sum(path.stat().st_size for path in NOTEBOOKS) < LARGEST_BYTES


def test_each_notebook_is_in_the_table():
    named = re.findall(r"^\| \[[^]]*\]\(([^)]+)\)", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert named == [path.name for path in NOTEBOOKS]
