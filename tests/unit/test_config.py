"""Reading configuration: what a user may write, what is refused, and in which words."""

import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal, Self

import pytest

from distforge.config import config_sha256, dump_toml, load_config, to_dict
from distforge.config_files import find_config
from distforge.errors import InputError


@dataclass(frozen=True)
class Optim:
    """The optimizer."""

    lr: float = 1e-3
    """Learning rate."""
    betas: tuple[float, ...] = (0.9, 0.95)
    clip: float | None = None
    decay: float = 0.0

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr = {self.lr} should be > 0")


@dataclass(frozen=True)
class Training:
    """Training."""

    zero_stage: int = 0
    schedule: Literal["cosine", "constant"] = "cosine"
    resume: bool = False
    optim: Optim = field(default_factory=lambda: Optim(lr=0.5, decay=0.25))


@dataclass(frozen=True)
class Run:
    """A run."""

    name: str = "quick"
    output: Path = Path("runs")
    training: Training = Training()
    targets: dict[str, float] = field(default_factory=dict)
    champion: Path | None = None
    judge: Optim | None = None
    shape: tuple[int, str] = (1, "a")


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_file_overrides_defaults_and_presets_keep_the_rest(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        name = "long"
        output = "somewhere/else"
        champion = "none"
        shape = [3, "b"]
        [training]
        schedule = "constant"
        [training.optim]
        betas = [1, 0.5, 0.25]
        clip = 2
        [targets]
        "a.b" = 1
        [judge]
        lr = 4
        """,
    )
    config = load_config(Run, path, [])
    assert config == Run(
        name="long",
        output=Path("somewhere/else"),
        training=Training(
            schedule="constant",
            # lr and decay are the preset's (0.5, 0.25), not the class's (0.001, 0.0)
            optim=Optim(lr=0.5, decay=0.25, betas=(1.0, 0.5, 0.25), clip=2.0),
        ),
        targets={"a.b": 1.0},
        judge=Optim(lr=4.0),
        shape=(3, "b"),
    )
    assert isinstance(config.training.optim.clip, float)


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    path = written(
        tmp_path, "[training]\nzero_stage = 1\n[training.optim]\nclip = 1.5\ndecay = 3\n"
    )
    words = ["--training.zero-stage", "2", "--training.resume", "--training.optim.clip", "none"]
    config = load_config(Run, path, words)
    assert config.training == Training(zero_stage=2, resume=True, optim=Optim(lr=0.5, decay=3.0))
    underscored = load_config(
        Run, path, ["--training.zero_stage=3", "--training.optim.clip=none", "--name", "none"]
    )
    assert underscored.training.zero_stage == 3
    assert underscored.training.optim.clip is None
    assert underscored.name == "none"


def test_without_a_file_the_defaults_hold() -> None:
    assert load_config(Run, None, []) == Run()
    assert load_config(Run, None, ["--training.optim.lr", "7"]).training.optim == Optim(
        lr=7.0, decay=0.25
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[training]\nzero_stag = 1", ["training.zero_stag", "training.zero_stage"]),
        ("[training]\nzero-stage = 1", ["training.zero-stage", "training.zero_stage"]),
        ("qqqq = 1", ["qqqq", "known keys: name, output, training"]),
        ("[training]\nzero_stage = '2'", ["training.zero_stage", '"2"', "an integer"]),
        ("[training]\nzero_stage = true", ["training.zero_stage", "true", "an integer"]),
        ("[training]\nzero_stage = 1.0", ["training.zero_stage", "1.0", "an integer"]),
        ("[training]\nresume = 1", ["training.resume", "1", "true or false"]),
        ("[training]\nschedule = 'linear'", ["training.schedule", '"cosine", "constant"']),
        ("[training.optim]\nlr = true", ["training.optim.lr", "true", "a number"]),
        ("[training.optim]\nlr = 'none'", ["training.optim.lr", '"none"', "a number"]),
        ("[training.optim]\nclip = 'x'", ["training.optim.clip", '"x"', "a number"]),
        ("[training.optim]\nbetas = [0.9, 'x']", ["training.optim.betas[1]", '"x"', "a number"]),
        ("[training.optim]\nbetas = 0.9", ["training.optim.betas", "a list"]),
        ("shape = [1]", ["shape", "a list of 2"]),
        ("training = 3", ["training", "3", "a table"]),
        ("[targets]\nx = 'y'", ["targets.x", '"y"', "a number"]),
        ("[judge]\nlrr = 1", ["judge.lrr", "judge.lr"]),
        ("[training.optim]\nlr = -1", ["[training.optim]", "lr = -1.0 should be > 0"]),
        ("name = \nx = 1", ["not valid TOML", "line 1"]),
    ],
)
def test_a_wrong_file_is_refused_in_words(tmp_path: Path, text: str, words: list[str]) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError) as caught:
        load_config(Run, path, [])
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_a_missing_or_unreadable_file_names_itself(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.toml.*No such file"):
        load_config(Run, tmp_path / "absent.toml", [])
    with pytest.raises(InputError, match="directory"):
        load_config(Run, tmp_path, [])
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary\.toml"):
        load_config(Run, binary, [])


def test_a_required_field_is_asked_for(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Needy:
        steps: int

    with pytest.raises(InputError, match="steps is required"):
        load_config(Needy, written(tmp_path, ""), [])
    assert load_config(Needy, None, ["--steps", "4"]) == Needy(4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--training.zero-stag", "1"], "--training.zero-stage"),
        (
            ["--training.zero-stage", "two"],
            "--training.zero-stage is 'two'; expected a whole number",
        ),
        (["--training.schedule", "linear"], "--training.schedule is 'linear'; expected "),
        (["--training.optim.lr", "-1"], "training.optim: lr = -1.0 should be > 0"),
    ],
)
def test_a_wrong_override_is_refused_in_words(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        load_config(Run, None, words)
    assert capsys.readouterr().err == ""


def test_help_lists_every_field_with_its_docstring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, "[training.optim]\nlr = 0.125\n")
    with pytest.raises(SystemExit) as caught:
        load_config(Run, path, ["--help"], prog="distforge bake")
    assert caught.value.code == 0
    page = capsys.readouterr().out
    for word in ["distforge bake", "--training.optim.lr", "Learning rate.", "0.125"]:
        assert word in page


NASTY = Run(
    name='quote " back \\ line\nbreak \x7f é \U0001f600 \x00',
    output=Path("a b/c"),
    training=Training(resume=True, optim=Optim(lr=1e-300, betas=(), clip=None, decay=1e22)),
    targets={"a.b": 0.1, "plain": float("inf"), 'q"': -3.0},
    judge=Optim(lr=2.0, clip=0.5),
)


def test_dumped_toml_reads_back_equal(tmp_path: Path) -> None:
    for config in (Run(), NASTY, replace(NASTY, champion=Path("x"), judge=None)):
        text = dump_toml(config)
        assert load_config(Run, written(tmp_path, text), []) == config
    assert tomllib.loads(dump_toml(Run()))["training"]["optim"]["lr"] == 0.5


def test_to_dict_is_plain_json_values() -> None:
    plain = to_dict(Run())
    assert plain["output"] == "runs"
    assert plain["champion"] is None
    assert plain["training"]["optim"]["betas"] == [0.9, 0.95]
    with pytest.raises(TypeError, match="dataclass instance"):
        to_dict(Run)


def test_the_hash_sees_every_value_but_the_excluded() -> None:
    base = config_sha256(Run())
    assert base == config_sha256(Run())
    assert len(base) == 64
    deeper = replace(Run(), training=Training(optim=Optim(lr=0.6, decay=0.25)))
    moved = replace(Run(), output=Path("elsewhere"))
    assert len({base, config_sha256(deeper), config_sha256(moved)}) == 3
    exclude = ["output", "training.optim.lr"]
    assert (
        config_sha256(Run(), exclude)
        == config_sha256(deeper, exclude)
        == config_sha256(moved, exclude)
    )
    with pytest.raises(ValueError, match=r"training\.optim\.rate"):
        config_sha256(Run(), ["training.optim.rate"])


def test_one_file_can_describe_several_commands(tmp_path):
    path = tmp_path / "both.toml"
    path.write_text("[inner]\nsteps = 3\n")

    @dataclass(frozen=True)
    class Part:
        steps: int = 1

    assert load_config(Part, path, [], table="inner").steps == 3
    assert load_config(Part, path, [], ignore=("inner",)).steps == 1
    with pytest.raises(InputError, match="unknown key inner"):
        load_config(Part, path, [])
    path.write_text("[inner]\nstops = 3\n")
    with pytest.raises(InputError, match=r"unknown key inner\.stops; did you mean inner\.steps"):
        load_config(Part, path, [], table="inner")


def test_a_bare_name_is_that_of_a_shipped_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = Path(__file__).resolve().parents[2] / "configs" / "quick.toml"
    assert find_config(Path("quick")).samefile(shipped)
    assert find_config(Path("quick.toml")).samefile(shipped)
    Path("quick").write_text("", encoding="utf-8")
    assert find_config(Path("quick")) == Path("quick")
    with pytest.raises(InputError, match=r"'xyzzy' here.*one of champion_25m.*, quick, .*single"):
        find_config(Path("xyzzy"))
    with pytest.raises(InputError, match=r"'quack.toml' here.*; did you mean 'quick'\?"):
        find_config(Path("quack.toml"))


def test_a_path_is_never_that_of_a_shipped_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"configs/quick\.toml: No such file.* or one of .*quick"):
        load_config(Run, Path("configs/quick.toml"), [])


@dataclass(frozen=True)
class Data:
    """Data, whose section's name stands for its path."""

    SHORT: ClassVar[str] = "path"

    path: str = ""
    seed: int = 0


@dataclass(frozen=True)
class Reading:
    """A command that reads data."""

    data: Data = Data()
    name: str = "x"


def test_a_sections_name_stands_for_its_short_field(tmp_path):
    file = written(tmp_path, 'data = "rows.jsonl"\n')
    assert load_config(Reading, file, []).data == Data("rows.jsonl")
    assert load_config(Reading, file, ["--data.seed", "3"]).data == Data("rows.jsonl", 3)
    for words in (["--data", "mine"], ["--data=mine"], ["--data.path=mine"]):
        assert load_config(Reading, file, words).data == Data("mine")
    # As files say it in which the section could be absent.
    assert load_config(Reading, written(tmp_path, 'data = "none"\n'), []).data == Data()


def test_a_file_changes_what_another_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "first.toml").write_text('name = "a"\n[training.optim]\nlr = 3\nclip = 2\n')
    (tmp_path / "second.toml").write_text('extends = "first.toml"\n[training.optim]\nlr = 4\n')
    third = written(tmp_path, 'extends = "second.toml"\nname = "c"\n[training]\nzero_stage = 2\n')
    monkeypatch.chdir(tmp_path.parent)
    assert load_config(Run, third, []) == Run(
        name="c", training=Training(zero_stage=2, optim=Optim(lr=4, decay=0.25, clip=2))
    )


@pytest.mark.parametrize(
    "text,refusal",
    [
        ('extends = "gone.toml"', r"no file 'gone.toml' here"),
        ("extends = 3", r"run.toml: extends = 3 should be a string"),
        ('extends = "run.toml"', r"run.toml: extends = .run.toml. leads back to itself"),
    ],
)
def test_a_file_that_extends_nothing(tmp_path: Path, text: str, refusal: str) -> None:
    with pytest.raises(InputError, match=refusal):
        load_config(Run, written(tmp_path, text), [])


@dataclass(frozen=True)
class Fitting:
    """A command whose defaults depend on what is set."""

    data: Data = Data()
    steps: int = 10

    @classmethod
    def for_settings(cls, named: Collection[str]) -> Self | None:
        return cls(steps=3) if "data.path" in named else None


@dataclass(frozen=True)
class Around:
    """A command with another's settings in a section."""

    inner: Fitting | None = None


def test_defaults_may_depend_on_what_is_set(tmp_path):
    assert load_config(Fitting, None, []) == Fitting()
    assert load_config(Fitting, None, ["--data.path", "x"]) == Fitting(Data("x"), 3)
    file = written(tmp_path, '[data]\npath = "x"\n')
    assert load_config(Fitting, file, []) == Fitting(Data("x"), 3)
    assert load_config(Fitting, file, ["--steps", "7"]) == Fitting(Data("x"), 7)
    file = written(tmp_path, "steps = 8\n")
    assert load_config(Fitting, file, ["--data.path=x"]) == Fitting(Data("x"), 8)
    file = written(tmp_path, '[inner.data]\npath = "x"\n')
    assert load_config(Around, file, []) == Around(Fitting(Data("x"), 3))
