"""`import ldm_jax`, and the wheel: what it holds, and that its commands work in an empty environment."""

import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import ldm_jax
from ldm_jax import recipes, shipped

ROOT = Path(__file__).resolve().parents[1]


def test_import_brings_nothing_slow():
    code = "import sys, ldm_jax; dir(ldm_jax); ldm_jax.__version__; ldm_jax.errors.Missing; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"jax", "numpy", "flax", "absl"} & set(result.stdout.split())


def test_names_come_from_their_module_when_used():
    from ldm_jax import images, pipeline, request

    assert ldm_jax.load is pipeline.load and ldm_jax.Pipeline is pipeline.Pipeline
    assert ldm_jax.SampleRequest is request.SampleRequest and ldm_jax.Images is images.Images
    assert ldm_jax.Missing is ldm_jax.errors.Missing and set(ldm_jax.__all__) <= set(dir(ldm_jax))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        ldm_jax.lod  # noqa: B018


def test_requirements_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    package = [*project["dependencies"], *extras["data"], *extras["logging"], *extras["dev"]]
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    assert sorted(filter(None, lines)) == sorted(package)


# A new user's lines. The same run through ldm-sample gives the same pixels.
USER = """
import numpy as np

import ldm_jax

pipe = ldm_jax.load("runs/quickstart_ldm")
images = pipe.sample(num=2, steps=3, seed=5)
images.grid().save("grid.png")
same = np.load("runs/quickstart_ldm/samples/samples.npz")["arr_0"]
assert np.array_equal(same, images.array)
print(images.shape)
"""


# A model that comes with the package, by its name.
BY_NAME = """
import ldm_jax

pipe = ldm_jax.load("shapes_class")
images = pipe.sample(label=[0, 9], steps=3, guidance=4)
assert "venv" in ldm_jax.__file__ and pipe.weights == "exported"
assert images.array.std() > 10  # of 255: it drew something
print(images.shape)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, because a build leaves its files in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for part in ("ldm_jax", "configs", "pretrained"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, folder)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", f"--wheel-dir={folder}", folder], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_a_wheel_holds_the_package_with_its_recipes_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"ldm_jax", f"ldm_jax-{ldm_jax.__version__}.dist-info"}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "ldm_jax").rglob("*.py")}
    modules |= {f"ldm_jax/configs/{name}.py" for name in recipes.names()}
    assert {name for name in names if name.endswith(".py")} == modules
    for model in shipped.names():
        files = {"README.md", "config.json", "manifest.json", "model.safetensors"}
        assert {f"ldm_jax/pretrained/{model}/{file}" for file in files} <= set(names)


@pytest.mark.slow
def test_a_source_distribution_makes_the_same_wheel(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "setuptools>=77"], check=True)
    build = f"import setuptools.build_meta; setuptools.build_meta.build_sdist({str(tmp_path)!r})"
    subprocess.run([python, "-c", build], cwd=wheel.parent, check=True)
    (source,) = tmp_path.glob("*.tar.gz")
    subprocess.run([python, "-m", "pip", "wheel", "--no-deps", f"--wheel-dir={tmp_path}", source], check=True)
    (again,) = tmp_path.glob("*.whl")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


@pytest.mark.slow
def test_the_commands_work_in_an_empty_environment(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    programs = tmp_path / "venv" / "bin"
    subprocess.run([programs / "pip", "install", "--quiet", wheel], check=True)

    def run(*command: str, code: int = 0) -> str:
        program, *options = command
        result = subprocess.run([programs / program, *options], cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == code, result.stdout + result.stderr
        return result.stdout + result.stderr

    run("python", "-c", "import sys, ldm_jax; assert 'jax' not in sys.modules; assert 'venv' in ldm_jax.__file__")
    for extra in ("tensorflow_datasets", "tensorboardX"):
        run("python", "-c", f"import {extra}", code=1)
    told = run("ldm-train", "--config=quickstart_ldm:tiny", "--config.first_stage.checkpoint=random")
    assert "step 4/4" in told and "ldm_jax[logging]" in told
    assert (tmp_path / "runs" / "quickstart_ldm" / "checkpoints" / "4").is_dir()
    told = run("ldm-train", "--config=celeba_ldm4", "--config.first_stage.checkpoint=random", code=2)
    assert "ldm_jax[data]" in told
    assert "--from" in run("ldm-convert", "--help")
    asked = ("--workdir=runs/quickstart_ldm", "--num=2", "--steps=3", "--seed=5", "--npz")
    assert "2 images in" in run("ldm-sample", *asked)
    told = run("ldm-sample", *asked, "--label=3", code=2)
    assert "--label means nothing here" in told and "Traceback" not in told
    (tmp_path / "user.py").write_text(USER)
    assert run("python", "user.py").splitlines()[-1] == "(2, 32, 32, 3)"
    assert (tmp_path / "grid.png").is_file()
    (tmp_path / "by_name.py").write_text(BY_NAME)
    assert run("python", "by_name.py").splitlines()[-1] == "(2, 32, 32, 3)"
    assert "2 images in samples/shapes_class" in run("ldm-sample", "--workdir=shapes_class", "--label=0", "--num=2")
    told = run("ldm-sample", "--workdir=shapes_clas", code=2)
    assert "by name: " in told and "shapes_class" in told and "Traceback" not in told
