"""A cost model that is kept between runs."""

import numpy as np
import pytest
from tvm.s_tir.meta_schedule.cost_model.xgb_model import FeatureGroup

from deploy.tuning import experience
from deploy.tuning.experience import kept, load, save
from deploy.tuning.explore import cost_model
from deploy.tuning.store import cost_model_path


def trained(kernels, candidates):
    """A model that knows made-up candidates of one to three rows of features each."""
    dice, model = np.random.default_rng(0), cost_model()
    for number in range(kernels):
        features = [dice.random((1 + n % 3, 164), np.float32) for n in range(candidates)]
        model.data[f"{number:016x}"] = FeatureGroup(f"{number:016x}", features, dice.random(candidates, np.float32))
        model.data_size += candidates
    every = [feature for group in model.data.values() for feature in group.features]
    model._train(xs=every, ys=dice.random(len(every)).astype(np.float32))
    return model, every


def test_what_was_learnt_comes_back(tmp_path):
    model, features = trained(3, 20)
    save(model, tmp_path / "model")
    again = cost_model()
    load(again, tmp_path / "model")
    assert list(again.data) == list(model.data)
    assert again.data_size == model.data_size == 60
    np.testing.assert_array_equal(again._predict(features), model._predict(features))
    for name, group in model.data.items():
        np.testing.assert_array_equal(again.data[name].costs, group.costs)
        assert all(np.array_equal(a, b) for a, b in zip(again.data[name].features, group.features, strict=True))


def test_the_kernels_seen_last_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(experience, "MOST", 50)
    model, _ = trained(5, 20)
    save(model, tmp_path / "model")
    again = cost_model()
    load(again, tmp_path / "model")
    assert list(again.data) == list(model.data)[-2:]


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_file_that_cannot_be_read_is_as_good_as_none(tmp_path, damage):
    model, _ = trained(1, 40)
    save(model, tmp_path / "model")
    whole = (tmp_path / "model").read_bytes()
    (tmp_path / "model").write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    fresh = cost_model()
    load(fresh, tmp_path / "model")
    assert (fresh.booster, fresh.data_size, len(fresh.data)) == (None, 0, 0)


def test_a_run_keeps_it_also_where_it_fails(tmp_path):
    model, _ = trained(1, 40)
    learnt = cost_model()

    def run():
        with kept(learnt, tmp_path):
            learnt.data, learnt.data_size, learnt.booster = model.data, model.data_size, model.booster
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert cost_model_path(tmp_path).is_file()
    again = cost_model()
    with kept(again, tmp_path):
        assert again.data_size == 40
        changed = cost_model_path(tmp_path).stat().st_mtime_ns
    assert cost_model_path(tmp_path).stat().st_mtime_ns == changed  # nothing new, nothing written


def test_an_untrained_model_is_not_kept(tmp_path):
    with kept(cost_model(), tmp_path):
        pass
    assert not cost_model_path(tmp_path).exists()
