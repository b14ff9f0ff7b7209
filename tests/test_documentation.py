"""The guide says what is, and is made into pages without a warning."""

import ast
import dataclasses
import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

import geodl_dask as gd
from geodl_dask import errors, tools
from geodl_dask.cli import cli

REPOSITORY = Path(__file__).parent.parent
GUIDE = REPOSITORY / ".docs"
PAGES = sorted(GUIDE.glob("*.md"))
ERRORS = {name for name, each in inspect.getmembers(errors, inspect.isclass) if each.__module__ == errors.__name__}


def page(name: str) -> str:
    return (GUIDE / name).read_text(encoding="utf-8")


def sections_of_errors() -> dict[str, str]:
    """Text below each heading of the troubleshooting page that names an error."""
    parts = re.split(r"^##+ (.*)$", page("troubleshooting.md"), flags=re.MULTILINE)[1:]
    named = (
        (re.findall(r"`(\w+Error)`", heading), text) for heading, text in zip(parts[::2], parts[1::2], strict=True)
    )
    return {name: text for names, text in named for name in names}


def pattern_of(text: ast.expr) -> str:
    """What a text of the code, perhaps an f-string, may become; nothing where it says too little to be known by."""
    parts = text.values if isinstance(text, ast.JoinedStr) else [text]
    said = [each.value if isinstance(each, ast.Constant) and isinstance(each.value, str) else None for each in parts]
    is_telling = sum(len(each) for each in said if each) >= 12
    return "".join(".*" if each is None else re.escape(each) for each in said) if is_telling else ""


def messages_of(error: str) -> list[str]:
    """Patterns of the messages that the code makes ``error`` of; by a variable, of all texts of that file."""
    called, beside = [], []
    for file in (REPOSITORY / "geodl_dask").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        calls = [each for each in nodes if isinstance(each, ast.Call) and each.args and isinstance(each.func, ast.Name)]
        called += [pattern_of(each.args[0]) for each in calls if each.func.id == error]
        if any(isinstance(each, ast.Name) and each.id == error for each in nodes):
            beside += [
                pattern_of(each) + ": .*" for each in nodes if isinstance(each, ast.JoinedStr) and pattern_of(each)
            ]
    return list(filter(None, called)) or beside


def test_every_error_has_its_section_and_the_page_names_no_other():
    assert sections_of_errors().keys() - {"EcdError"} == ERRORS


@pytest.mark.parametrize("name", sorted(ERRORS - {"GeodlError"}))
def test_messages_that_the_page_shows_are_messages_of_that_error(name):
    patterns = messages_of(name)
    shown = re.findall(r"^> (.*)$", sections_of_errors()[name], re.MULTILINE)
    assert shown
    for message in shown:
        assert any(re.fullmatch(pattern, message) for pattern in patterns), message


def test_every_public_name_is_in_the_reference():
    documented = set(re.findall(r"geodl_dask\.(\w+)$", page("api.rst"), re.MULTILINE))
    assert documented == set(gd.__all__) - {"__version__"}


def options_of(command) -> set[str]:
    return {name for each in command.params if isinstance(each, click.Option) for name in each.opts}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_options_that_the_guide_names_are_there(path):
    known = set().union(*map(options_of, cli.commands.values()))
    foreign = {"--crs", "--colorinterp", "--no-deps", "--extract", "--exclusive"}  # of rio, pip, ecd.py, sbatch
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", path.read_text(encoding="utf-8"))) - foreign <= known


def test_every_option_that_describes_a_network_is_in_the_guide():
    for name in options_of(cli.commands["pack-model"]) - {"--overwrite", "--quiet", "-q"}:
        assert f"`{name}" in page("packing.md"), name


def test_environments_are_those_of_the_tools():
    named = set(re.findall(r"^\| `(\w+)`(?:, `(\w+)`)?(?: \(ours\))? \|", page("environments.md"), re.MULTILINE))
    fields = {each.name for each in dataclasses.fields(tools.Environment)}
    variables = {name for pair in named for name in pair if name and not name.isupper()} - {"onnx", "vectors"}
    assert fields <= variables


def test_environment_variables_and_extras_are_all_in_the_guide():
    code = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "geodl_dask").rglob("*.py"))
    for variable in set(re.findall(r"GEODL_DASK_[A-Z_]+", code)):
        assert f"`{variable}`" in page("environments.md"), variable
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in extras["optional-dependencies"].keys() - {"test", "dev", "docs"}:
        assert f"`{extra}`" in page("environments.md"), extra


def block(language: str, containing: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", page("packing.md"), re.DOTALL)
    (only,) = [each for each in blocks if containing in each]
    return only


def test_examples_of_packing_give_the_same_package(tmp_path, monkeypatch):
    """With the demo's network, which has more classes than the example."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "network.pt2").write_bytes((REPOSITORY / "geodl_dask/demo/model/model.pt2").read_bytes())
    more = ";2 Two;3 Three;4 Four"
    command = block("bash", "pack-model").replace("\\\n", " ").splitlines()[0].replace("#f2b134", "#f2b134" + more)
    done = CliRunner().invoke(cli, [*shlex.split(command)[1:]])
    assert done.exit_code == 0, done.output
    by_options = gd.load_definition("roads.dlpk").keys
    described = yaml.safe_load(block("yaml", "Classes"))
    described["Classes"] += [{"Value": place, "Name": name} for place, name in ((2, "Two"), (3, "Three"), (4, "Four"))]
    gd.pack_model("network.pt2", "roads.dlpk", definition=described, overwrite=True)
    by_file = gd.load_definition("roads.dlpk").keys
    assert by_file.pop("Classes")[1] == by_options.pop("Classes")[1]
    assert by_file == by_options


def test_links_of_the_guide_and_the_front_page_lead_somewhere():
    for path in (*PAGES, REPOSITORY / "README.md"):
        for target in re.findall(r"\]\((?!http)([^)]+)\)", path.read_text(encoding="utf-8")):
            name, _, anchor = target.partition("#")
            file = (path.parent / name).resolve() if name else path
            assert file.exists(), f"{path.name}: {target}"
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
            anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert not anchor or anchor in anchors, f"{path.name}: {target}"


@pytest.mark.skipif(
    not all(map(find_spec, ("sphinx", "myst_parser", "furo"))), reason="the docs extra is not installed"
)
def test_guide_builds_without_a_warning(tmp_path):
    words = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", str(GUIDE), str(tmp_path / "html")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    written = (tmp_path / "html" / "api.html").read_text(encoding="utf-8")
    for name in set(gd.__all__) - {"__version__"}:
        assert f'id="geodl_dask.{name}"' in written, name
    assert "How it works" in (tmp_path / "html" / "index.html").read_text(encoding="utf-8")
