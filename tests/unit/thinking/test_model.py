"""One module of language model and mixing head: gradients, export, training through the engine."""

import copy

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from distforge.errors import InputError
from distforge.models.export import export_model
from distforge.optim.roles import assign_roles
from distforge.quietstar import ThinkingModel
from distforge.thinking.language_model import turn_for_writing_
from distforge.thinking.mixing import MixingHead, mix_logits
from distforge.thinking.packing import TARGET, pack_thoughts
from distforge.thinking.places import Places
from distforge.thinking.thoughts import ThoughtConfig, sample_thoughts
from distforge.training.distributed import World
from distforge.training.engine import TrainingEngine
from distforge.training.engine_config import EngineConfig
from tests.tiny_models import tiny_llama, tiny_tokenizer
from tests.training_cases import MUON, build_optimizer
from tests.unit.thinking.cases import EXACT, MODELS, TAGS, branch_ids, model, padded, words

TEXTS = [words(8), words(6, seed=1)]
ROWS, POSITIONS = torch.tensor([0, 0, 1]), torch.tensor([2, 5, 3])
TARGETS = torch.stack([TEXTS[0][3:5], TEXTS[0][6:8], TEXTS[1][4:6]])
CONFIG = ThoughtConfig(max_tokens=3)


def thoughts_of(thinker):
    generator = torch.Generator().manual_seed(0)
    return sample_thoughts(thinker, *padded(TEXTS), ROWS, POSITIONS, TAGS, CONFIG, generator)


def packed_batch(thinker):
    return pack_thoughts(TEXTS, thoughts_of(thinker), TARGETS, TAGS)


def mixed_nll(output, batch):
    labels = batch["labels"][batch["labels"] != -100]
    return torch.nn.functional.cross_entropy(output.mixed_logits(), labels, reduction="sum")


def uneven(thinker):
    """A mixing head that says something else at every place."""
    with torch.no_grad():
        torch.manual_seed(0)
        thinker.mixing_head.out.weight.normal_()
    return thinker


@torch.no_grad()
def test_a_new_head_gives_the_plain_prediction_up_to_its_bias():
    thinker = ThinkingModel.wrap(model(), initial_weight=0.1)
    batch = packed_batch(thinker)
    output = thinker(**batch)
    torch.testing.assert_close(output.weight, torch.full((6,), 0.1))
    thought = output.logits[output.targets]
    base = []
    for row, position in zip(ROWS.tolist(), POSITIONS.tolist(), strict=True):
        logits = thinker.lm(input_ids=TEXTS[row][None]).logits[0]
        base.append(logits[position : position + 2])
    base = torch.cat(base)[[0, 1, 2, 3, 4, 5]]
    torch.testing.assert_close(output.base_logits, base, rtol=0, atol=EXACT)
    expected = 0.9 * base.log_softmax(dim=-1) + 0.1 * thought.log_softmax(dim=-1)
    mixed = output.mixed_logits()[output.targets]
    torch.testing.assert_close(mixed.log_softmax(-1), expected.log_softmax(-1), rtol=0, atol=EXACT)
    rest = ~output.targets
    assert torch.equal(output.mixed_logits()[rest], output.logits[rest])


@torch.no_grad()
def test_the_packed_mixture_is_what_scores_say():
    thinker = uneven(ThinkingModel.wrap(model()))
    packed = packed_batch(thinker)
    output = thinker(**packed)
    labelled = packed["labels"] != -100
    label, thought, step = (
        packed[key][labelled][output.targets] for key in ("labels", "thought", "step")
    )
    mixed = output.mixed_logits()[output.targets].log_softmax(dim=-1)
    places = Places(thinker, *padded(TEXTS), ROWS, POSITIONS, TARGETS, TAGS)
    scores = places.score(thoughts_of(thinker))
    got = mixed.gather(-1, label[:, None])[:, 0]
    torch.testing.assert_close(got, scores.log_probs[thought, step], rtol=0, atol=EXACT)


def test_mixing_ends_where_it_should():
    base, thought = torch.randn(2, 5), torch.randn(2, 5)
    torch.testing.assert_close(mix_logits(base, thought, torch.zeros(2)), base)
    torch.testing.assert_close(mix_logits(base, thought, torch.ones(2)), thought)
    head = MixingHead(4, 0.25)
    assert head(torch.randn(3, 4), torch.randn(3, 4)).tolist() == pytest.approx([0.25] * 3)


def test_without_mixing_the_thought_is_all():
    thinker = ThinkingModel.wrap(model(), mixing=False)
    output = thinker(**packed_batch(thinker))
    assert thinker.mixing_head is None
    assert output.base_logits is None
    assert (output.weight == 1).all()
    assert torch.equal(output.mixed_logits(), output.logits)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_one_sequence_after_another(name, checkpointing):
    thinker = uneven(ThinkingModel.wrap(model(name)))
    thoughts, batch = thoughts_of(thinker), packed_batch(thinker)
    thinker.eval()
    if checkpointing:  # acts in training mode alone, so without dropout to be comparable
        for module in thinker.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        options = {"use_reentrant": False}
        thinker.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        thinker.train()
    mixed_nll(thinker(**batch), batch).backward()
    packed = {key: value.grad.clone() for key, value in thinker.named_parameters()}
    thinker.zero_grad()
    thinker.eval()
    alone_nll(thinker, thoughts).backward()
    for key, value in thinker.named_parameters():
        scale = float(value.grad.abs().max())
        torch.testing.assert_close(packed[key], value.grad, rtol=1e-4, atol=1e-5 * max(scale, 1.0))


def alone_nll(thinker, thoughts):
    """The same loss, from a sequence of its own for every thought and its text."""
    total = torch.zeros(())

    def read(ids):
        output = thinker.lm(input_ids=torch.tensor([ids]), output_hidden_states=True)
        return output.logits[0], output.hidden_states[-1][0]

    for i, (row, anchor) in enumerate(zip(ROWS.tolist(), POSITIONS.tolist(), strict=True)):
        given = branch_ids(TEXTS[row], anchor, thoughts, i)
        targets = TARGETS[i].tolist()
        base, base_hidden = read(TEXTS[row].tolist())
        logits, hidden = read([*given, *targets])
        first = anchor + 1
        total = total + torch.nn.functional.cross_entropy(
            logits[first : first + CONFIG.max_tokens], thoughts.tokens[i], reduction="sum"
        )
        places = slice(len(given) - 1, len(given) - 1 + len(targets))
        bases = slice(anchor, anchor + len(targets))
        weight = thinker.mixing_head(base_hidden[bases], hidden[places])
        mixed = mix_logits(base[bases], logits[places], weight)
        total = total + torch.nn.functional.cross_entropy(mixed, TARGETS[i], reduction="sum")
    return total


@pytest.mark.parametrize("mixing", [True, False])
def test_an_export_is_a_plain_model_with_the_head_beside_it(tmp_path, mixing):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    lm = model_for(tokenizer)
    thinker = ThinkingModel.wrap(lm, mixing=mixing, initial_weight=0.3)
    if mixing:
        uneven(thinker)
    directory = tmp_path / "model"
    export_model(thinker, tokenizer, directory)
    plain = AutoModelForCausalLM.from_pretrained(directory)
    assert type(plain) is type(lm)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, lm.state_dict()[key])
    again = ThinkingModel.from_pretrained(directory)
    assert not again.training
    assert dict(again.named_parameters()).keys() == dict(thinker.named_parameters()).keys()
    for key, value in again.named_parameters():
        assert torch.equal(value, thinker.get_parameter(key))
    assert (directory / "mixing_head.safetensors").exists() == mixing
    if mixing:
        with safe_open(directory / "mixing_head.safetensors", "pt") as stored:
            assert set(stored.keys()) == set(thinker.mixing_head.state_dict())
    export_model(again, tokenizer, directory)  # an export may be replaced


def model_for(tokenizer):
    return tiny_llama(len(tokenizer))


def test_a_directory_that_is_no_thinking_model_is_refused(tmp_path):
    tokenizer = tiny_tokenizer()
    export_model(model_for(tokenizer), tokenizer, tmp_path / "plain")
    with pytest.raises(InputError, match=r"wrap a plain language model with ThinkingModel\.wrap"):
        ThinkingModel.from_pretrained(tmp_path / "plain")
    export_model(ThinkingModel.wrap(model_for(tokenizer)), tokenizer, tmp_path / "cut")
    (tmp_path / "cut" / "mixing_head.safetensors").write_bytes(b"\0" * 8)
    with pytest.raises(InputError, match="not this model's mixing head"):
        ThinkingModel.from_pretrained(tmp_path / "cut")
    with pytest.raises(InputError, match=r"inside \(0, 1\)"):
        ThinkingModel.wrap(model(), initial_weight=1.0)


def test_its_configuration_rebuilds_it_with_its_ties():
    thinker = ThinkingModel.wrap(model())
    rebuilt = type(thinker)(copy.deepcopy(thinker.config))
    shapes = {key: value.shape for key, value in rebuilt.named_parameters()}
    assert shapes == {key: value.shape for key, value in thinker.named_parameters()}
    rebuilt.lm.get_output_embeddings().weight = torch.nn.Parameter(torch.zeros(48, 32))
    rebuilt.tie_weights()
    assert rebuilt.get_output_embeddings().weight is rebuilt.get_input_embeddings().weight
    rebuilt.set_attn_implementation("eager")
    assert rebuilt.lm.config._attn_implementation == "eager"
    assert thinker.lm.config._attn_implementation == "sdpa"


def test_the_head_is_trained_by_adamw_and_the_inner_matrices_by_muon():
    thinker = ThinkingModel.wrap(model())
    assigned = assign_roles(thinker, MUON.muon_grokfast)
    roles = {name: entry.role.algorithm for entry in assigned for name in entry.names}
    assert {role for name, role in roles.items() if name.startswith("mixing_head")} == {"adamw"}
    assert roles["lm.model.embed_tokens.weight"] == "adamw"
    assert roles["lm.model.layers.0.self_attn.q_proj.weight"] == "muon"


def test_the_engine_trains_it():
    thinker = uneven(ThinkingModel.wrap(model()))
    batch = packed_batch(thinker)
    targets = int((batch["labels"] != -100).sum())

    def loss(module, given):
        return mixed_nll(module(**given), given), torch.zeros(())

    engine = TrainingEngine(
        thinker,
        lambda module: build_optimizer(module, MUON),
        EngineConfig(dtype="float32", qk_clip_every=2, activation_checkpointing=True),
        World(rank=0, local_rank=0, size=1, device=torch.device("cpu")),
        1,
        loss,
    )
    before = copy.deepcopy(thinker.state_dict())
    losses = [engine.train_step([batch], 1.0, targets).loss for _ in range(4)]
    assert losses[-1] < losses[0]
    for key, value in thinker.state_dict().items():
        assert not torch.equal(value, before[key]), key
    assert int((batch["kind"] == TARGET).sum()) == 6


def test_matrices_that_lie_by_column_hold_the_same_values():
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    lm = LlamaForCausalLM(config).eval()
    ids = torch.arange(12).view(2, 6)
    state = {name: value.clone() for name, value in lm.state_dict().items()}
    with torch.no_grad():
        before = lm(input_ids=ids).logits
        turn_for_writing_(lm)
        lm.load_state_dict(state)  # as an engine does at each version
        after = lm(input_ids=ids).logits
    turned = {name for name, value in lm.named_parameters() if not value.is_contiguous()}
    assert "model.layers.0.mlp.down_proj.weight" in turned
    assert not any("embed" in name or "norm" in name for name in turned)
    assert all(torch.equal(value, state[name]) for name, value in lm.state_dict().items())
    torch.testing.assert_close(after, before, rtol=0, atol=EXACT)
