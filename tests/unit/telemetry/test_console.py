"""Progress on a terminal and elsewhere, and the final tables."""

import io
import json
import re

import pytest
from rich.console import Console

from distforge.reports.step1_summary import Step1Summary
from distforge.reports.step2_summary import Step2Summary
from distforge.reports.tables import accuracy_table, reinforcement_table, usage_table
from distforge.telemetry import RLMetrics, RunConsole
from distforge.telemetry import metrics as names
from distforge.telemetry.console import counting, describe_metrics, format_seconds
from tests.unit.reports.reinforcement_directory import (
    make_probe,
    make_rl_summary,
    make_text_summary,
)
from tests.unit.reports.run_directory import make_summary
from tests.unit.telemetry.test_jsonl import Clock
from tests.unit.telemetry.test_metrics import make_metrics


def plain(width: int = 200) -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=width)


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_one_plain_line_an_interval_and_the_last_step() -> None:
    console, clock = plain(), Clock()
    shown = RunConsole(10.0, console, clock)
    with shown.progress(100, "baking"):
        for step in range(1, 101):
            clock.now += 1.0
            shown.update(step, {names.TRAIN_LOSS: 2.0, names.TRAIN_TOKENS_PER_SECOND: 12500.0})
    lines = output(console).splitlines()
    steps = [int(re.search(r"step (\d+)/100", line)[1]) for line in lines]  # type: ignore[index]
    assert steps == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 100]
    assert lines[4] == "baking  step 41/100  loss 2.0000  tokens/s 12.5k  elapsed 0:41  ETA 0:59"


def test_a_resumed_stage_estimates_from_its_own_pace() -> None:
    console, clock = plain(), Clock()
    shown = RunConsole(0.0, console, clock)
    with shown.progress(100, start_step=90):
        clock.now += 10.0
        shown.update(95, {})
    assert output(console) == "training  step 95/100  elapsed 0:10  ETA 0:10\n"


def test_a_stage_cut_short_shows_where_it_ended() -> None:
    console, clock = plain(), Clock()
    shown = RunConsole(10.0, console, clock)

    def interrupted() -> None:
        with shown.progress(100):
            shown.update(1, {})
            shown.update(2, {})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [line.split("  ")[1] for line in output(console).splitlines()] == [
        "step 1/100",
        "step 2/100",
    ]
    with shown.progress(5):  # The next stage may begin.
        shown.update(5, {})


def test_a_terminal_shows_a_bar_that_ends_complete() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=160, _environ={})
    shown = RunConsole(10.0, console)
    with shown.progress(4, "baking"):
        for step in range(1, 5):
            shown.update(step, {names.TRAIN_LOSS: 0.5, names.BAKING_ACCURACY_OVERALL: 0.875})
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output(console)).replace("\r", "\n")
    (final,) = [line for line in last.splitlines() if "4/4" in line][-1:]
    assert "baking" in final
    assert "loss 0.5000" in final
    assert "accuracy 87.5%" in final
    assert "ETA" in final


def test_generated_accuracy_is_shown_before_token_accuracy() -> None:
    both = {names.TRAIN_TOKEN_ACCURACY: 0.9, names.BAKING_ACCURACY_OVERALL: 0.5}
    assert describe_metrics(both) == "accuracy 50.0%"
    assert describe_metrics({names.TRAIN_TOKEN_ACCURACY: 0.9}) == "token accuracy 90.0%"


def test_reinforcement_shows_reward_and_entropy_before_the_loss() -> None:
    step = {
        names.TRAIN_LOSS: 0.5,
        names.RL["reward"]: 0.9,
        names.RL["avg_reward"]: 0.4125,
        names.RL_ENTROPY: 1.2,
    }
    assert describe_metrics(step) == "reward 0.412  entropy 1.200"
    probed = {**step, names.RL_ACCURACY["sampled"]: 0.6, names.RL_ACCURACY["own"]: 0.821}
    assert describe_metrics(probed) == "reward 0.412  entropy 1.200  accuracy 82.1%"
    unmeasured = {**step, names.RL_ACCURACY["own"]: float("nan")}
    assert describe_metrics(unmeasured) == "reward 0.412  entropy 1.200"
    del step[names.RL["avg_reward"]], step[names.RL_ENTROPY]
    assert describe_metrics(step) == "reward 0.900"
    console = plain()
    shown = RunConsole(0.0, console)
    with shown.progress(2, "thinking"):
        shown.update(1, probed)
    assert "thinking  step 1/2  reward 0.412  entropy 1.200  accuracy 82.1%" in output(console)


def test_a_probe_is_one_line_of_what_was_measured() -> None:
    console = plain()
    shown = RunConsole(console=console)
    shown.show_probe(make_probe(60))
    shown.show_probe(
        RLMetrics(
            episode=160.0,
            reward=0.5,
            avg_reward=0.5,
            thought_length=8.0,
            kl_divergence=0.01,
            ess=float("nan"),
        )
    )
    assert output(console).splitlines() == [
        "episode 9,600  reward 0.800  length 7.0  KL 0.0400  ablation +62.0 points  coherence 0.78",
        "episode 160  reward 0.500  length 8.0  KL 0.0100",
    ]


def test_an_epoch_names_the_weakest_strategy_and_markup_stays_text() -> None:
    console = plain()
    shown = RunConsole(console=console)
    shown.show_epoch(make_metrics()[0])
    shown.say("[red]as it is[/red]")
    epoch, said = output(console).splitlines()
    assert "weakest chain_of_thought 106.2%" in epoch  # The first of the made-up values.
    assert said == "[red]as it is[/red]"


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0:00"), (59.6, "1:00"), (3725, "1:02:05"), (float("nan"), "-:--"), (-3, "0:00")],
)
def test_seconds_as_a_clock(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def rows(table_text: str) -> dict[str, list[str]]:
    cells = [[c.strip() for c in re.split("[│┃]", line)[1:-1]] for line in table_text.splitlines()]
    return {row[0]: row[1:] for row in cells if row}


def test_the_final_table_says_what_is_met() -> None:
    summary = Step1Summary.parse(json.dumps(make_summary()))
    console = plain()
    console.print(accuracy_table(summary), usage_table(summary))
    shown = rows(output(console))
    assert shown["chain_of_thought"] == ["20.0%", "90.0%", "≥ 76.5%", "yes"]
    assert shown["self_doubt"] == ["–", "76.4%", "≥ 76.5%", "no"]
    assert shown["bayesian_rationalist"] == ["20.0%", "–", "≥ 76.5%", "no"]
    assert shown["overall"] == ["20.8%", "85.0%", "≥ 85.0%", "yes"]
    assert shown["thinking"] == ["80.0%", "> 80.0%", "no"]
    assert shown["doubt"] == ["50.1%", "> 50.0%", "yes"]
    assert "converged: no" in output(console)


def test_the_table_of_step_2_compares_with_baked_and_controls() -> None:
    console = plain()
    console.print(reinforcement_table(Step2Summary.parse(json.dumps(make_rl_summary()))))
    shown = rows(output(console))
    assert shown["trained model"] == ["82.1%", "", "", ""]
    assert shown["baked model"] == ["60.6%", "+21.5 points", "[+19.8, +23.2]", "yes"]
    assert shown["random thoughts"] == ["19.4%", "+62.7 points", "[+60.4, +64.9]", "yes"]
    assert shown["filler tokens"] == ["84.0%", "-1.9 points", "[-3.1, -0.8]", "no"]
    assert "improved: yes   verdict: not judged yet   9,600 episodes" in output(console)
    console = plain()
    console.print(reinforcement_table(Step2Summary.parse(json.dumps(make_text_summary()))))
    gain = rows(output(console))["gain over the baked model"]
    assert gain == ["", "+0.010 bits", "[-0.004, +0.024]", "no"]
    assert "improved: no   verdict: THEATRE" in output(console)


def test_a_count_says_how_far_it_is_every_interval() -> None:
    clock, said = Clock(), []
    count = counting(said.append, "answering", 10.0, clock)
    for done in range(0, 101, 4):
        clock.now += 1.0
        count(done, 100)
    assert said == [
        "answering: 36 of 100  elapsed 0:10  ETA 0:18",
        "answering: 76 of 100  elapsed 0:20  ETA 0:06",
    ]
