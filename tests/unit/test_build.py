"""setup.py's own decisions, and every CUDA source compiled for every architecture it promises."""

from __future__ import annotations

import importlib.util
import re
import sys
import sysconfig
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.compiled import compile_once

ROOT = Path(__file__).resolve().parents[2]


def load_setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("distforge_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses look up the annotations of the module.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


setup = load_setup()
NVCC = setup.find_nvcc()


def fake_nvcc(folder: Path, release: str, architectures: str) -> str:
    """An nvcc that answers the two questions that setup.py asks, so the rules need no toolkit."""
    path = folder / "nvcc"
    path.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --version ] && echo "Cuda compilation tools, release {release}, V{release}.1"\n'
        f'[ "$1" = --list-gpu-arch ] && printf "{architectures}"\n'
        "exit 0\n"
    )
    path.chmod(0o755)
    return str(path)


def test_architectures_are_those_that_nvcc_knows(tmp_path):
    nvcc = fake_nvcc(tmp_path, "12.4", "compute_75\\ncompute_80\\ncompute_87\\ncompute_90\\n")
    architectures = setup.supported_architectures(nvcc)
    assert architectures == ["75", "80", "90a"]
    assert setup.gencode_flags(architectures) == [
        "-gencode=arch=compute_75,code=sm_75",
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90a,code=compute_90a",
    ]


@pytest.mark.parametrize(
    "wish,torch_cuda,built,reason",
    [
        ("auto", "13.0", True, "nvcc"),
        ("auto", None, False, "CPU build"),
        ("auto", "12.8", False, "another major version"),
        ("1", None, True, "DISTFORGE_BUILD_CUDA=1"),
        ("0", "13.0", False, "DISTFORGE_BUILD_CUDA=0"),
    ],
)
def test_when_the_cuda_part_is_built(tmp_path, monkeypatch, wish, torch_cuda, built, reason):
    (tmp_path / "bin").mkdir()
    nvcc = fake_nvcc(tmp_path / "bin", "13.0", "compute_75\\n")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("DISTFORGE_BUILD_CUDA", wish)
    chosen, why = setup.choose_nvcc(torch_cuda)
    assert chosen == (nvcc if built else None)
    assert reason in why


def test_forcing_cuda_without_nvcc_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(setup, "find_nvcc", lambda: None)
    monkeypatch.setenv("DISTFORGE_BUILD_CUDA", "1")
    with pytest.raises(SystemExit, match="nvcc was found neither"):
        setup.choose_nvcc("13.0")
    monkeypatch.setenv("DISTFORGE_BUILD_CUDA", "auto")
    assert setup.choose_nvcc("13.0") == (None, "no nvcc")


def test_an_unknown_wish_is_refused(monkeypatch):
    monkeypatch.setenv("DISTFORGE_BUILD_CUDA", "yes")
    with pytest.raises(SystemExit, match="expected auto, 0 or 1"):
        setup.choose_nvcc(None)


def test_what_the_native_part_lacks_is_said_with_the_remedy(monkeypatch):
    assert setup.what_is_missing() == ""
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "'no-such-compiler' was not found; install g++" in setup.what_is_missing()
    monkeypatch.setattr(setup.importlib.metadata, "version", lambda name: "2.10.1+cpu")
    assert setup.what_is_missing() == "torch 2.10.1+cpu is too old; install torch >= 2.11"
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(setup.importlib.util, "find_spec", lambda name: None)
    assert "--no-build-isolation" in setup.what_is_missing()


def test_when_the_native_part_is_built(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    for value in ("auto", "0"):
        monkeypatch.setenv("DISTFORGE_BUILD_NATIVE", value)
        reason = setup.why_not_native()
        setup.go_without(reason, tmp_path)
        assert capsys.readouterr().out == f"distforge: native part: none ({reason})\n"
        assert (tmp_path / setup.REASON_FILE).read_text() == f"{reason}\n"
    assert reason == "DISTFORGE_BUILD_NATIVE=0"
    monkeypatch.setenv("DISTFORGE_BUILD_NATIVE", "1")
    with pytest.raises(SystemExit, match="=1, but the C\\+\\+ compiler 'no-such-compiler'"):
        setup.go_without(setup.why_not_native(), tmp_path)
    monkeypatch.setenv("DISTFORGE_BUILD_NATIVE", "yes")
    with pytest.raises(SystemExit, match="expected auto, 0 or 1"):
        setup.why_not_native()


def test_a_build_in_place_without_a_native_part_removes_the_old_one(monkeypatch, tmp_path):
    monkeypatch.delenv("DISTFORGE_BUILD_NATIVE", raising=False)  # CI sets it
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    (tmp_path / "distforge").mkdir()
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    mine, other = tmp_path / f"distforge/_C{suffix}", tmp_path / "distforge/_C.other.so"
    mine.touch()
    other.touch()
    setup.go_without("it did not compile", tmp_path)
    assert (mine.exists(), other.exists()) == (False, True)


def locked(name: str) -> dict[str, list[str]]:
    """By package as it is spelt in a lock file with its version, the hashes of its files."""
    text = (ROOT / name).read_text()
    found: dict[str, list[str]] = {}
    for line in text.replace(" \\\n", " ").splitlines():
        if not line.startswith("#"):
            pin, *hashes = line.split()
            assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin)
            assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", word) for word in hashes)
            found[pin] = hashes
    return found


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-server.lock"])
def test_a_lock_pins_every_requirement_with_hashes_and_names_no_place(name):
    pins = locked(name)
    assert all(pins.values())
    names = {canonicalize_name(pin.partition("==")[0]) for pin in pins}
    assert "torch" not in names
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    server = extras.pop("server")
    groups = [server] if "server" in name else extras.values()
    asked = {Requirement(text).name for group in groups for text in group} - {"distforge"}
    assert {canonicalize_name(name) for name in asked} <= names
    assert [*locked("requirements-torch.lock")] == ["torch==2.13.0"]


def architectures_to_compile() -> list:
    """By day the one that has every kernel, also those that no other has."""
    known = setup.supported_architectures(NVCC) if NVCC else []
    return [pytest.param(a, marks=[] if a == "90a" else [pytest.mark.nightly]) for a in known]


@pytest.mark.skipif(NVCC is None, reason="no nvcc on this machine")
def test_nvcc_knows_the_architectures_in_use():
    assert {"75", "80", "86", "89", "90a"} <= set(setup.supported_architectures(NVCC))


@pytest.mark.skipif(NVCC is None, reason="no nvcc on this machine")
@pytest.mark.parametrize("architecture", architectures_to_compile())
@pytest.mark.parametrize("source", sorted((ROOT / "csrc").rglob("*.cu")), ids=lambda p: p.name)
def test_cuda_sources_compile_without_spills(source, architecture):
    command = [
        NVCC,
        *setup.NVCC_FLAGS,
        *setup.gencode_flags([architecture]),
        *("-Xptxas=-v", "-c", str(source.relative_to(ROOT))),
    ]
    name = f"{source.stem}-{architecture}.o"
    report = (compile_once(command, name, seconds=280) / "log").read_text()
    compiled = set(re.findall(r"Compiling entry function '\w+' for 'sm_(\w+)'", report))
    assert compiled == {architecture}
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert spills
    assert set(spills) == {("0", "0")}
    # What ptxas says where it cannot let wgmma run ahead.
    assert "serialized" not in report
