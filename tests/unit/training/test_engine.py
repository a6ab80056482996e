"""The engine in one plain process, against torch alone."""

import math
from contextlib import nullcontext

import pytest
import torch

from distforge.errors import InputError
from distforge.optim import build_optimizer
from distforge.training.distributed import World
from distforge.training.engine import (
    NonFiniteGradientError,
    NonFiniteLossError,
    TrainingEngine,
)
from distforge.training.guards import VetoedStepError
from tests.tiny_models import tiny_gpt2, tiny_llama
from tests.training_cases import (
    ADAMW,
    MICRO_BATCHES,
    MUON,
    STEPS,
    VOCAB,
    count_targets,
    engine_config,
    make_engine,
    micro_batches,
    oracle,
    relative_distance,
    train,
    train_from_start,
    weights,
)

WORLD = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))

# fp32 rounding of sums in another order; measured 2e-7.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def expected():
    return oracle()


@pytest.mark.parametrize("portions", [1, 2, 4, 16])
def test_any_cut_into_micro_batches_trains_the_same_model(expected, portions):
    results, ours = train_from_start(WORLD, engine_config(), portions=portions)
    losses, norms = zip(*expected[0], strict=True)
    assert [r.loss for r in results] == pytest.approx(losses, rel=TOLERANCE)
    assert [r.grad_norm for r in results] == pytest.approx(norms, rel=1e-4)
    assert min(norms) > 1  # so every step was clipped
    assert relative_distance(ours, expected[1]) <= TOLERANCE


def test_activation_checkpointing_changes_nothing(expected):
    _, ours = train_from_start(WORLD, engine_config(activation_checkpointing=True))
    assert relative_distance(ours, expected[1]) <= TOLERANCE


def test_without_clipping_the_gradient_is_whole():
    """AdamW hides the gradient's scale; plain SGD moves the weights by exactly lr times it."""

    def sgd(model):
        group = {"params": list(model.parameters()), "initial_lr": 1.0}
        return torch.optim.SGD([group], lr=1.0)

    moved = {}
    for limit in (0.0, 0.5):
        config = engine_config(max_grad_norm=limit, qk_clip_every=0)
        model = tiny_llama(VOCAB)
        before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        engine = TrainingEngine(model, sgd, config, WORLD, MICRO_BATCHES)
        result = engine.train_step(micro_batches(0), 0.25, count_targets(0))
        after = torch.cat([p.detach().flatten() for p in model.parameters()])
        moved[limit] = float((after - before).norm()), result.grad_norm
    assert moved[0.0][0] == pytest.approx(0.25 * moved[0.0][1], rel=1e-4)
    assert moved[0.5][0] == pytest.approx(0.25 * 0.5, rel=1e-4)
    assert moved[0.5][1] == pytest.approx(moved[0.0][1])


def test_token_accuracy_counts_argmax_hits():
    engine = make_engine(WORLD, engine_config())
    hits = 0
    with torch.no_grad():
        for batch in micro_batches(0, 16):
            guess = engine._module(input_ids=batch["input_ids"]).logits.argmax(-1)[:, :-1]
            target = batch["labels"][:, 1:]
            hits += int(((guess == target) & (target != -100)).sum())
    result = train(engine, WORLD, range(1))[0]
    assert result.token_accuracy == pytest.approx(hits / count_targets(0))


@pytest.mark.parametrize("optimizer", [ADAMW, MUON], ids=["adamw", "muon_grokfast"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resume_is_bitwise(tmp_path, optimizer, dtype):
    config = engine_config(dtype=dtype)
    results, straight = train_from_start(WORLD, config, optimizer)
    first = make_engine(WORLD, config, optimizer)
    train(first, WORLD, range(2))
    torch.manual_seed(7)
    first.save(tmp_path)
    noise = torch.rand(4)
    resumed = make_engine(WORLD, config, optimizer)
    resumed.load(tmp_path)
    assert torch.equal(torch.rand(4), noise)
    assert train(resumed, WORLD, range(2, STEPS)) == results[2:]
    ours = weights(resumed)
    assert all(torch.equal(ours[name], straight[name]) for name in straight)


def test_a_checkpoint_of_another_precision_is_refused_untouched(tmp_path):
    make_engine(WORLD, engine_config()).save(tmp_path)
    engine = make_engine(WORLD, engine_config(dtype="bfloat16"), MUON)
    before = weights(engine)
    with pytest.raises(InputError, match="saved by plain, zero_stage 0, float32, 1 ranks"):
        engine.load(tmp_path)
    after = weights(engine)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_directory_without_state_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no rank_0\.pt: it is no checkpoint"):
        make_engine(WORLD, engine_config()).load(tmp_path)


@pytest.mark.parametrize("optimizer", [ADAMW, MUON], ids=["adamw", "muon_grokfast"])
def test_a_loss_that_is_not_finite_stops_before_the_update(optimizer):
    engine = make_engine(WORLD, engine_config(), optimizer)
    train(engine, WORLD, range(1))
    before = weights(engine)
    engine._module.get_output_embeddings().register_forward_hook(lambda *args: args[2] * math.nan)
    with pytest.raises(NonFiniteLossError, match="loss of step 2 is nan"):
        train(engine, WORLD, range(1, 2))
    after = weights(engine)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("optimizer", [ADAMW, MUON], ids=["adamw", "muon_grokfast"])
def test_a_gradient_that_is_not_finite_stops_before_the_update(optimizer):
    engine = make_engine(WORLD, engine_config(), optimizer)
    before = weights(engine)
    weight = engine._module.model.layers[0].mlp.up_proj.weight
    weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteGradientError, match="gradient of step 1"):
        train(engine, WORLD, range(1))
    after = weights(engine)
    assert all(torch.equal(after[name], before[name]) for name in before)


def vetoed_engine(veto):
    return TrainingEngine(
        tiny_llama(VOCAB),
        lambda model: build_optimizer(model, ADAMW),
        engine_config(),
        WORLD,
        MICRO_BATCHES,
        veto=veto,
    )


def test_a_vetoed_step_changes_nothing_and_the_next_is_taken():
    objections = iter(["too stale", ""])
    engine = vetoed_engine(lambda world: next(objections))
    before = weights(engine)
    with pytest.raises(VetoedStepError, match="step 1 was not taken: too stale"):
        train(engine, WORLD, range(1))
    assert all(torch.equal(value, before[name]) for name, value in weights(engine).items())
    train(engine, WORLD, range(1))
    assert any(not torch.equal(value, before[name]) for name, value in weights(engine).items())


@pytest.mark.parametrize("objection", ["too stale", ""])
def test_a_veto_leaves_the_loss_scale_and_an_infinite_gradient_halves_it(objection):
    engine = vetoed_engine(lambda world: objection)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    engine._backend._scaler = scaler
    if not objection:
        weight = engine._module.model.layers[0].mlp.up_proj.weight
        weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(VetoedStepError) if objection else nullcontext():
        train(engine, WORLD, range(1))
    assert scaler.get_scale() == (1024 if objection else 512)


def test_micro_batches_must_divide_by_the_ranks():
    pair = World(rank=0, local_rank=0, size=2, device=torch.device("cpu"))
    with pytest.raises(InputError, match="micro_batches is 3"):
        make_engine(pair, engine_config(), portions=3)


def test_qk_clip_runs_on_its_schedule_and_bounds_the_logits():
    engine = make_engine(WORLD, engine_config(qk_clip_every=2), MUON)
    counts = [r.clipped_heads for r in train(engine, WORLD, range(4))]
    assert counts[0] > 0
    assert counts[1] == counts[3] == 0


def test_another_loss_is_summed_and_divided_by_the_targets():
    """Half the squared logits of the last column: a loss that knows no labels."""

    def loss(module, batch):
        logits = module(input_ids=batch["input_ids"]).logits[:, -1]
        return logits.square().sum() / 2, batch["input_ids"].new_tensor(3)

    def sgd(model):
        return torch.optim.SGD([{"params": list(model.parameters()), "initial_lr": 1.0}], lr=1.0)

    config = engine_config(max_grad_norm=0.0, qk_clip_every=0)
    engine = TrainingEngine(tiny_llama(VOCAB), sgd, config, WORLD, MICRO_BATCHES, loss=loss)
    oracle_model = tiny_llama(VOCAB)
    total = sum(loss(oracle_model, batch)[0] for batch in micro_batches(0))
    (total / 40).backward()
    result = engine.train_step(micro_batches(0), 0.1, 40)
    assert result.loss == pytest.approx(float(total.detach()) / 40, rel=TOLERANCE)
    assert result.token_accuracy == 3 * MICRO_BATCHES / 40
    expected = {n: p.detach() - 0.1 * p.grad for n, p in oracle_model.named_parameters()}
    ours = weights(engine)
    gap = relative_distance({n: ours[n] for n in expected}, expected)
    assert gap <= TOLERANCE


def test_another_architecture_trains():
    engine = TrainingEngine(
        tiny_gpt2(VOCAB), lambda m: build_optimizer(m, ADAMW), engine_config(), WORLD, MICRO_BATCHES
    )
    losses = [engine.train_step(micro_batches(0), 1.0, count_targets(0)).loss for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]
