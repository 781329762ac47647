"""One process, two DDP ranks and two FSDP2 ranks give the same run (gloo, float32, clipping)."""

import pytest
from runs import launch, log_file, metrics, series, start_ranks

NAMES = (
    "loss/train/ce",
    "loss/train/lagrangian",
    "optimizer/gradient_norm",
    "optimizer/gradient_norm_masks",
    "optimizer/gradient_norm_linear_multipliers",
    "optimizer/gradient_norm_quadratic_multipliers",
    "pruning/expected_parameters",
    "pruning/expected/hidden",
    "metrics/prose/loss",
    "mixture/train_loss/prose",  # the training signal, summed over all ranks
)
SETTINGS = (
    "run.duration=5ba",
    "run.eval_interval=5ba",
    # Bounds below the gradient norms: a wrong gradient scale would change every step.
    "optimizer.clip_norm=0.1",
    "pruning.clip_norm=0.01",
)

pytestmark = pytest.mark.filterwarnings("default")  # Composer's own warnings are not ours


@pytest.fixture
def spread(recipe_file, tmp_path):
    """Run with several ranks; the metrics."""

    def go(ranks, *overrides):
        run, logs = tmp_path / ("-".join(overrides) or "alone"), tmp_path / "logs"
        arguments = [str(recipe_file), f"run.directory={run}", *SETTINGS, *overrides]
        processes = start_ranks(ranks, logs, arguments)
        for process in processes:
            process.join(timeout=300)
        statuses = [process.exitcode for process in processes]
        assert statuses == [0] * ranks, log_file(logs, 0).read_text()[-3000:]
        return metrics(run)

    return go


@pytest.fixture
def alone(spread):
    """The metrics of one process."""
    found = spread(1)
    assert all(norm > 0.1 for norm in series(found, "optimizer/gradient_norm").values())
    return found


def assert_same(found, alone):
    for name in NAMES:
        expected = series(alone, name)
        assert expected, name
        assert series(found, name) == pytest.approx(expected, abs=1e-5, rel=1e-5), name


@pytest.mark.world_size(2)
def test_two_ranks_equal_one_process(alone, spread):
    found = spread(2, "parallelism=ddp")
    assert_same(found, alone)
    whole = series(found, "throughput/tokens_per_second")
    each = series(found, "throughput/tokens_per_second_per_device")
    assert whole == pytest.approx({step: 2 * rate for step, rate in each.items()})
    assert_same(spread(2, "parallelism=fsdp2"), alone)
    replicas = ("parallelism=fsdp2", "shard_ranks=1", "model.activation_checkpointing=true")
    assert_same(spread(2, *replicas), alone)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_composers_launcher_gives_the_same_run(alone, recipe_file, tmp_path, ranks):
    run = tmp_path / "launched"
    done = launch(ranks, recipe_file, f"run.directory={run}", *SETTINGS)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same(metrics(run), alone)


@pytest.mark.slow
@pytest.mark.world_size(4)
def test_hybrid_sharding_equals_one_process(alone, spread):
    assert_same(spread(4, "parallelism=fsdp2", "shard_ranks=2", "data.microbatch=1"), alone)


@pytest.mark.gpu
@pytest.mark.world_size(2)
@pytest.mark.parametrize("overrides", [(), ("shard_ranks=1",)], ids=["sharded", "replicated"])
def test_fsdp1_equals_one_process(alone, spread, overrides):
    assert_same(spread(2, "parallelism=fsdp1", *overrides), alone)


@pytest.mark.gpu
@pytest.mark.world_size(2)
@pytest.mark.parametrize("mode", ["fsdp2", "fsdp1", "ddp"])
def test_bfloat16_training_lowers_the_loss(spread, mode):
    found = spread(2, f"parallelism={mode}", "model.precision=amp_bf16")
    losses = series(found, "loss/train/ce")
    assert losses[5] < losses[1]
