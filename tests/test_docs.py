"""The documentation names what exists: links, pictures, files, recipes, options, and Python that is true."""

import ast
import dataclasses
import inspect
import re
import shlex
import textwrap
import typing
from pathlib import Path

import pytest
from ml_collections import ConfigDict

import ldm_jax
from ldm_jax import recipes
from ldm_jax.cli import evaluate, sample
from tests.test_imports import PLAN

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = {"ldm_jax/conditions/depth.py"}  # files that a reader would write
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def fenced(text: str, language: str | None = None) -> list[str]:
    """Blocks between ``` of a language, or of any."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [block for name, block in found if language in (None, name)]


def inline(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))


def commands(text: str) -> list[str]:
    """Lines of code, continued ones joined, without comments; and code within sentences."""
    lines = "\n".join(fenced(text)).replace("\\\n", " ").splitlines()
    return [line.partition(" #")[0] for line in lines] + inline(text)


def anchors(page: Path) -> set[str]:
    """The anchors of headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pages
def test_links_and_pictures_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        where = page.parent / name if name else page
        assert where.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(where), f"{page.name}: {target}"


@pages
def test_files_exist(page):
    folders = "ldm_jax|configs|scripts|benchmarks|tests|docs"
    for code in inline(page.read_text()):
        for name in re.findall(rf"(?<![\w/.])(?:{folders})/[\w./-]*", code):
            assert name in EXAMPLES or (ROOT / name.rstrip(".")).exists(), f"{page.name}: {name}"


@pages
def test_recipes_of_commands_exist(page):
    for command in commands(page.read_text()):
        for name in re.findall(r"--config=([\w/.:]+)", command):
            if not re.search("[A-Z]|^my/", name):  # a placeholder
                assert recipes.load(name), f"{page.name}: {name}"


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "training.md"], ids=lambda page: page.name)
def test_recipes_of_the_tables_exist(page):
    table = page.read_text().partition("| task | recipe |")[2].partition("\n\n")[0]
    found = [name for row in table.splitlines()[2:] for name in re.findall("`([^`]+)`", row.split("|")[2])]
    assert len(found) > 10
    for found_one in found:
        if found_one != "...":
            name, _, variant = found_one.partition(":")
            assert name in recipes.names(), found_one
            assert not variant or variant in recipes.variants(name), found_one


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "editing.md"], ids=lambda page: page.name)
def test_options_of_sample_exist(page):
    known = {option for action in sample.parser()._actions for option in action.option_strings}
    others = re.compile(r"\b(train\.py|convert\.py|evaluate\.py|ldm-train|ldm-convert|pip|make|scripts/|benchmarks/)")
    found = {
        option
        for command in commands(page.read_text()) if not others.search(command)
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*(?!\.)\b", command)
    }  # fmt: skip
    assert len(found) > 10 and not found - known


def test_options_of_evaluate_exist():
    texts = [page.read_text() for page in PAGES] + [recipes.find(name).read_text() for name in recipes.names()]
    lines = "\n".join(texts).replace("\\\\\n", " ").replace("\\\n", " ").splitlines()
    asked = [line.partition(" #")[0] for line in lines if line.strip().startswith("python evaluate.py ")]
    parsed = [evaluate.parse(shlex.split(line)[2:]) for line in asked]
    assert len(parsed) > 40


def options(section: ConfigDict, prefix: str = "config") -> set[str]:
    """Names of all sections and options, "config.data.path"."""
    inside = {f"{prefix}.{name}": value for name, value in section.items()}
    return set(inside).union(*(options(v, name) for name, v in inside.items() if isinstance(v, ConfigDict)))


@pytest.fixture(scope="module")
def of_recipes():
    tasks = ("first_stage", "class", "text", "layout", "semantic", "inpaint", "hybrid", "classifier")
    return set().union(*(options(recipes.load(f"quickstart_{task}")) for task in tasks))


@pages
def test_options_of_recipes_exist(page, of_recipes):
    for command in commands(page.read_text()):
        for name in re.findall(r"(?<![\w/])config(?:\.[a-z]\w*)+(?!\()", command):
            assert name in of_recipes or name == "config.json", f"{page.name}: {name}"


@pages
def test_python_compiles(page):
    for block in fenced(page.read_text(), "python"):
        compile(block, page.name, "exec")


def value_of(node: ast.expr, scope: dict):
    """What an expression is: a module, a function, or the type of a value. AttributeError for what does not exist."""
    if isinstance(node, ast.Name):
        return scope[node.id]
    if isinstance(node, ast.Attribute):
        return getattr(value_of(node.value, scope), node.attr)
    assert isinstance(node, ast.Call)
    return typing.get_type_hints(checked(node, scope))["return"]


def checked(call: ast.Call, scope: dict):
    """The function that is called, which takes the keywords."""
    function = value_of(call.func, scope)
    parameters = inspect.signature(function).parameters
    known = set(parameters)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        known |= {field.name for field in dataclasses.fields(ldm_jax.SampleRequest)}
    assert {keyword.arg for keyword in call.keywords} <= known, ast.unparse(call)
    return function


def test_the_readme_uses_what_exists():
    scope = {}
    for statement in ast.parse(fenced((ROOT / "README.md").read_text(), "python")[0]).body:
        if isinstance(statement, ast.Import):
            assert [alias.name for alias in statement.names] == ["ldm_jax"]
            scope["ldm_jax"] = ldm_jax
        elif isinstance(statement, ast.Assign):
            scope[statement.targets[0].id] = value_of(statement.value, scope)
        else:
            checked(statement.value, scope)
    assert scope["pipe"] is ldm_jax.Pipeline and scope["images"] is ldm_jax.Images


def test_every_option_of_a_request_is_described():
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "python.md").read_text(), re.MULTILINE)
    assert {field.name for field in dataclasses.fields(ldm_jax.SampleRequest)} <= set(rows)


def test_the_plan_of_imports_is_described():
    lines = fenced((ROOT / "docs" / "architecture.md").read_text(), "")[0].splitlines()
    assert [set(line.split()) for line in lines] == PLAN


def test_the_examples_are_those_that_are_tested():
    blocks = fenced((ROOT / "docs" / "architecture.md").read_text(), "python")
    tree = ast.parse((ROOT / "tests" / "conditions" / "test_conditions.py").read_text())
    depth = next(node.value.value for node in tree.body
                 if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "DEPTH")  # fmt: skip
    source = (ROOT / "tests" / "test_pipeline.py").read_text()
    mine = next(node for node in ast.walk(ast.parse(source)) if getattr(node, "name", "") == "first_order")
    lines = source.splitlines()[mine.decorator_list[0].lineno - 1 : mine.end_lineno]
    for example in (depth.strip(), textwrap.dedent("\n".join(lines))):
        assert any(block.strip().endswith(example) for block in blocks)
