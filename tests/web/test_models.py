"""Requests of many visitors: one at a time, few models in memory, a visitor who leaves stops the work."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from ldm_jax import config_file, pipeline, recipes
from ldm_jax.errors import Missing, RequestError
from ldm_jax.images import Images
from ldm_jax.pipeline import Progress
from ldm_jax.provenance import Model
from ldm_jax.request import SampleRequest
from ldm_jax.web.models import Made, Models

STEPS = 6


class Pipe:
    """In place of a Pipeline: counts how many are at work, and what was done."""

    def __init__(self, path, **_):
        self.path, self.config, self.origin, self.cleared = (
            str(path),
            recipes.load("quickstart_ldm:tiny"),
            Model(str(path)),
            0,
        )
        self.steps = 0
        ALL.append(self)

    def sample(self, wanted, on_progress, on_preview, preview_every):
        WORK.now += 1
        WORK.most = max(WORK.most, WORK.now)
        try:
            if wanted.seed == 13:
                raise RequestError("not this seed")
            for step in range(1, STEPS + 1):
                self.steps += 1
                on_progress(Progress(step, STEPS, 0, 1, 1))
                WORK.go.wait(10)
                if step == preview_every:
                    on_preview(Progress(step, STEPS, 0, 1, 1), Images([np.zeros((2, 2, 3), np.uint8)]))
            return Images([np.full((2, 2, 3), wanted.seed, np.uint8)], settings={"seed": wanted.seed})
        finally:
            WORK.now -= 1

    def clear(self):
        self.cleared += 1


ALL, WORK = [], SimpleNamespace()


@pytest.fixture
def models(tmp_path, monkeypatch):
    for name in ("a", "b"):
        config_file.save(tmp_path / name, recipes.load("quickstart_ldm:tiny").to_dict())
    ALL.clear()
    WORK.now, WORK.most, WORK.go = 0, 0, threading.Event()
    WORK.go.set()
    monkeypatch.setattr(pipeline, "load", Pipe)
    monkeypatch.chdir(tmp_path)
    return Models(["a", "b"])


def test_progress_previews_and_the_images(models):
    events = list(models.sample("a", SampleRequest(seed=5, steps=8)))
    assert [e.step for e in events if isinstance(e, Progress)] == list(range(1, STEPS + 1))
    assert sum(isinstance(e, Images) for e in events) == 1
    assert isinstance(events[-1], Made) and events[-1].images[0].max() == 5 and events[-1].model == Model("a")


def test_visitors_wait_for_each_other(models):
    made = []

    def visit(run, seed):
        made.append(list(models.sample(run, SampleRequest(seed=seed)))[-1].images[0].max())

    visitors = [threading.Thread(target=visit, args=("ab"[i % 2], i)) for i in range(6)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join(20)
    assert sorted(made) == list(range(6)) and WORK.most == 1


def test_one_model_is_kept(models):
    for run in ("a", "a", "b", "a"):
        list(models.sample(run, SampleRequest()))
    assert [(pipe.path, pipe.cleared) for pipe in ALL] == [("a", 1), ("b", 1), ("a", 0)]


def test_a_visitor_who_leaves_stops_the_work(models):
    WORK.go.clear()
    events = models.sample("a", SampleRequest())
    next(events)
    events.close()
    WORK.go.set()
    list(models.sample("a", SampleRequest()))  # waits for the first
    assert ALL[0].steps == 2 + STEPS and WORK.now == 0


def test_errors_come_to_the_one_who_asked(models):
    with pytest.raises(RequestError, match="not this seed"):
        list(models.sample("a", SampleRequest(seed=13)))
    assert isinstance(list(models.sample("a", SampleRequest()))[-1], Made)
    with pytest.raises(RequestError, match="takes no condition"):
        models.check("a", SampleRequest(label=3))
    models.check("a", SampleRequest())


def test_a_refusal_names_the_run_without_its_path(models, tmp_path):
    run = str(tmp_path / "b")
    with pytest.raises(RequestError, match=r"\bb\b") as error:
        Models([run]).check(run, SampleRequest(guidance=2.0))
    assert str(tmp_path) not in str(error.value)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(Missing, match="nowhere"):
        Models([tmp_path / "nowhere"])
