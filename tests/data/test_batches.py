import pickle

import numpy as np
import pytest
from absl import logging
from PIL import Image

from ldm_jax.data import batches
from ldm_jax.data.sources import CorruptExample, FolderSource, ShapesSource, Source
from ldm_jax.data.transforms import ImageTransform
from ldm_jax.errors import DataError
from tests.data_tools import batch_at, take

PLAIN = ImageTransform(4, resize="none")
RANDOM = ImageTransform(32, resize_to=40, crop="random", flip=True)


class Numbered(Source):
    """Example i is an image of the value i; those in `corrupt` cannot be read."""

    def __init__(self, count, corrupt=()):
        self.count, self.corrupt = count, set(corrupt)

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if i in self.corrupt:
            raise CorruptExample(f"file{i}", "broken")
        return {"image": np.full((4, 4, 1), i % 256, np.uint8), "label": i}


def drawn(example, rng):
    """A transform that draws one number."""
    return {"label": example["label"], "drawn": rng.random()}


def labels(found):
    return np.concatenate([batch["label"] for batch in found]).tolist()


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        assert a.keys() == b.keys()
        for key in a:
            assert np.array_equal(a[key], b[key]), key


def test_resuming_equals_a_straight_run():
    source = ShapesSource(40, count=50)
    straight = take(batches.batches(source, RANDOM, 8, seed=1), 12)
    resumed = take(batches.batches(source, RANDOM, 8, seed=1, start_step=7), 5)
    assert_equal(straight[7:], resumed)
    alone = [batch_at(source, RANDOM, 8, step, seed=1) for step in (0, 7, 11)]
    assert_equal([straight[0], straight[7], straight[11]], alone)


def test_batches_are_what_the_loop_expects():
    batch = batch_at(ShapesSource(40, count=50), RANDOM, 6, 0, seed=0)
    assert batch["image"].shape == (6, 32, 32, 3) and batch["image"].dtype == np.float32
    assert batch["label"].shape == (6,) and batch["label"].dtype == np.int32


def test_hosts_share_the_global_batch():
    source = ShapesSource(40, count=50)
    whole = take(batches.batches(source, RANDOM, 12, seed=3), 5)
    parts = [take(batches.batches(source, RANDOM, 12, seed=3, process_index=h, process_count=3), 5) for h in range(3)]
    joined = [{key: np.concatenate([part[key] for part in step]) for key in step[0]} for step in zip(*parts)]
    assert_equal(whole, joined)


def test_worker_processes_change_nothing(monkeypatch):
    source = Numbered(100, corrupt=[17])
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: warnings.append(text % args))
    here = take(batches.batches(source, PLAIN, 10, seed=3, start_step=2), 13)
    there = take(batches.batches(source, PLAIN, 10, seed=3, start_step=2, workers=2), 13)
    assert_equal(here, there)
    # Once for each run, also from a worker process.
    assert [w.startswith("corrupt example file17") for w in warnings] == [True, True]


def test_an_epoch_holds_every_sample_once_in_a_new_order():
    source = Numbered(30)
    seen = labels(take(batches.batches(source, PLAIN, 8, seed=0), 15))  # four epochs of 30
    epochs = [seen[k : k + 30] for k in range(0, 120, 30)]
    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert labels([batch_at(source, PLAIN, 30, 0, seed=1)]) != epochs[0]


def test_augmentation_differs_between_epochs():
    source = ShapesSource(64, count=4)
    first, second = take(batches.batches(source, RANDOM, 4, seed=0), 2)
    orders = [np.argsort(batch["label"]) for batch in (first, second)]
    for a, b in zip(*orders):
        assert first["label"][a] == second["label"][b] and not np.array_equal(first["image"][a], second["image"][b])


def test_closing_ends_the_batches():
    iterator = batches.batches(Numbered(9), PLAIN, 3, seed=0)
    next(iterator)
    iterator.close()
    iterator.close()
    assert list(iterator) == []


def test_a_set_smaller_than_the_batch_repeats():
    seen = labels([batch_at(Numbered(3), PLAIN, 8, 0, seed=0)])
    assert sorted(seen[:3]) == sorted(seen[3:6]) == [0, 1, 2] and len(set(seen[6:])) == 2


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="empty"):
        batches.batches(Numbered(0), PLAIN, 8, seed=0)
    with pytest.raises(ValueError, match=r"batch_size 8 .* 3 processes"):
        batches.batches(Numbered(9), PLAIN, 8, seed=0, process_count=3)
    with pytest.raises(ValueError, match="process_index 2"):
        batches.batches(Numbered(9), PLAIN, 8, seed=0, process_index=2, process_count=2)


def test_a_corrupt_file_is_replaced_by_the_next(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: warnings.append(text % args))
    for k in range(10):
        Image.new("RGB", (4, 4), (k, k, k)).save(tmp_path / f"{k}.png")
    (tmp_path / "3.png").write_bytes(b"\x89PNG broken")
    iterator = batches.batches(FolderSource(tmp_path, "all"), PLAIN, 5, seed=0)
    values = np.rint((np.concatenate([b["image"] for b in take(iterator, 6)])[:, 0, 0, 0] + 1) * 127.5)
    for epoch in np.split(values, 3):
        assert sorted(epoch) == [0, 1, 2, 4, 4, 5, 6, 7, 8, 9]
    assert iterator.corrupt == 3 and len(warnings) == 1 and "3.png" in warnings[0]


def test_many_corrupt_files_are_an_error():
    iterator = batches.batches(Numbered(100, corrupt=range(0, 100, 10)), PLAIN, 10, seed=0)
    with pytest.raises(DataError, match=r"corrupt, more than 5 %.*file"):
        take(iterator, 100)
    # 4 % may be corrupt for ever.
    take(batches.batches(Numbered(100, corrupt=[1, 30, 60, 90]), PLAIN, 10, seed=0), 100)


def test_nothing_but_corrupt_files_is_an_error():
    with pytest.raises(DataError, match=r"7 examples in a row.*file.*Repair"):
        batch_at(Numbered(7, corrupt=range(7)), PLAIN, 2, 0, seed=0)


def test_errors_of_worker_processes_are_the_users_too():
    iterator = batches.batches(Numbered(7, corrupt=range(7)), PLAIN, 2, seed=0, workers=1)
    with pytest.raises(DataError, match="7 examples in a row"):
        next(iterator)
    iterator.close()


def test_errors_of_the_transform_surface():
    iterator = batches.batches(Numbered(9), ImageTransform(5, resize="none", crop="none"), 3, seed=0)
    with pytest.raises(ValueError, match="is 4x4"):
        next(iterator)
    iterator.close()


def test_examples_that_differ_are_named():
    with pytest.raises(DataError, match="differ in 'label'"):
        batches._stack([({"image": np.zeros(3), "label": 1}, []), ({"image": np.zeros(3)}, [])])


def test_evaluation_drops_nothing_and_weighs_the_filling():
    found = list(batches.eval_batches(Numbered(10), PLAIN, 4))
    assert labels(found) == [*range(10), 0, 1]
    weight = np.concatenate([batch["weight"] for batch in found])
    assert weight.dtype == np.float32 and weight.tolist() == [1] * 10 + [0] * 2


def test_evaluation_has_its_own_random_numbers():
    """At every seed others than training's, and at every evaluation the same."""
    training = batch_at(Numbered(4), drawn, 4, 0, seed=0)
    first, again, other = (take(batches.eval_batches(Numbered(4), drawn, 4, seed=seed), 1)[0] for seed in (0, 0, 1))
    assert np.array_equal(first["drawn"], again["drawn"])
    assert not np.isin(first["drawn"], training["drawn"]).any() and not np.isin(first["drawn"], other["drawn"]).any()


def test_evaluation_limit_spreads_over_the_source():
    found = list(batches.eval_batches(Numbered(100), PLAIN, 4, limit=5))
    assert labels(found)[:5] == [0, 20, 40, 60, 80]
    assert np.concatenate([batch["weight"] for batch in found]).sum() == 5
    assert sum(b["weight"].sum() for b in batches.eval_batches(Numbered(3), PLAIN, 8, limit=50)) == 3
    with pytest.raises(ValueError, match="limit is 0"):
        batches.eval_batches(Numbered(3), PLAIN, 8, limit=0)


def test_evaluation_on_two_hosts():
    parts = [list(batches.eval_batches(Numbered(10), PLAIN, 4, process_index=h, process_count=2)) for h in range(2)]
    assert labels(parts[0]) == [0, 1, 4, 5, 8, 9] and labels(parts[1]) == [2, 3, 6, 7, 0, 1]


def test_transform_and_source_can_be_pickled():
    pickle.loads(pickle.dumps((ShapesSource(32, count=2), RANDOM)))


def test_a_host_may_have_rows_that_do_not_follow_each_other():
    """Those of its devices, wherever they stand in the mesh: the rows of the whole batch."""
    source, own = ShapesSource(40, count=50), (0, 1, 6, 7)
    whole = take(batches.batches(source, RANDOM, 12, seed=3), 3)
    part = take(batches.batches(source, RANDOM, 12, seed=3, own=own), 3)
    for all_rows, some in zip(whole, part):
        assert all(np.array_equal(all_rows[name][list(own)], some[name]) for name in all_rows)
    (once,), (again,) = (list(batches.eval_batches(Numbered(4), PLAIN, 4, own=rows)) for rows in (None, (1, 3)))
    assert np.array_equal(once["image"][[1, 3]], again["image"])
