"""The watchdog of a training run."""

from ldm_jax.training import loop
from tests.training.test_saving import train


def test_each_step_is_a_sign_of_life(tmp_path, monkeypatch):
    """Also where metrics are logged seldom."""
    renewed = []
    monkeypatch.setattr(loop.Watchdog, "renew", lambda self: renewed.append(1))
    train(tmp_path, steps=12, log=12)
    assert len(renewed) >= 12
