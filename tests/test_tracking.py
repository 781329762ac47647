import importlib.util

import pytest
from runs import run_here

from llmshearing import tracking
from llmshearing.config import RunSettings
from llmshearing.errors import UserError

pytestmark = pytest.mark.filterwarnings("default")  # Composer's and wandb's own warnings
SHORT = ("run.duration=2ba", "run.eval_interval=2ba", "run.wandb=shearing")
installed = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="no wandb: pip install -e '.[wandb]'"
)


@pytest.fixture
def fresh_settings():
    """wandb reads its settings once per process; reset them."""
    import wandb

    wandb.teardown()
    yield
    wandb.teardown()


@installed
@pytest.mark.usefixtures("fresh_settings")
def test_wandb_gets_the_metric_names_of_the_metrics_file(recipe_file, tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    run_here(recipe_file, *SHORT)
    wandb.teardown()  # its process writes the file; wait for it
    own = (tmp_path / "run/wandb-id.txt").read_text()
    (tracked,) = (tmp_path / "run/wandb").glob(f"offline-run-*/run-{own}.wandb")
    content = tracked.read_bytes()
    for name in (b"metrics/prose/loss", b"mixture/train_loss/code", b"loss/train/ce"):
        assert name in content


@installed
def test_runs_of_the_same_name_differ_and_a_resumed_run_stays_one(tmp_path):
    settings = [
        RunSettings(directory=str(tmp_path / n / "prune"), duration="1ba", wandb="p")
        for n in ("a", "a", "b")
    ]
    ids = [tracking.loggers(one)[0]._init_kwargs["id"] for one in settings]
    assert ids[0] == ids[1] != ids[2]


@installed
@pytest.mark.usefixtures("fresh_settings")
def test_a_missing_api_key_gives_one_message(recipe_file, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match=r"run\.wandb: .*WANDB_MODE=offline"):
        run_here(recipe_file, *SHORT)


def test_a_missing_wandb_package_is_reported_before_the_run(recipe_file, monkeypatch):
    found = importlib.util.find_spec
    absent = {"wandb"}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in absent else found(name)
    )
    with pytest.raises(UserError, match=r"run\.wandb: .*pip install"):
        run_here(recipe_file, *SHORT)
