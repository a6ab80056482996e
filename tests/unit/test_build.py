"""setup.py's own decisions, and every CUDA source compiled for every architecture it promises."""

from __future__ import annotations

import importlib.util
import re
import subprocess
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


def test_architectures_of_ones_own_choice(tmp_path, monkeypatch):
    nvcc = fake_nvcc(tmp_path, "13.0", "compute_75\\ncompute_90\\n")
    monkeypatch.setenv("DISTFORGE_CUDA_ARCHITECTURES", "90a")
    assert setup.supported_architectures(nvcc) == ["90a"]
    monkeypatch.setenv("DISTFORGE_CUDA_ARCHITECTURES", "75 70")
    with pytest.raises(SystemExit, match="ARCHITECTURES names 70: expected some of 75 80 86"):
        setup.supported_architectures(nvcc)


@pytest.mark.parametrize(
    "wish,torch_cuda,built,reason",
    [
        ("auto", "13.0", True, "nvcc"),
        ("auto", None, False, "CPU build"),
        ("auto", "12.8", False, "is of 13.0; install a toolkit of CUDA 12"),
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
    chosen, reason = setup.choose_nvcc("13.0")
    assert chosen is None
    assert reason.startswith("nvcc was found neither")


def test_a_toolkit_that_is_too_old_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    nvcc = fake_nvcc(tmp_path / "bin", "11.8", "compute_75\n")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("DISTFORGE_BUILD_CUDA", "auto")
    remedy = f"{nvcc} is of CUDA 11.8, too old for C++20; install the CUDA toolkit 12.0 or newer"
    assert setup.choose_nvcc("11.8") == (None, remedy)
    monkeypatch.setenv("DISTFORGE_BUILD_CUDA", "1")
    with pytest.raises(SystemExit, match=r"too old for C\+\+20.*or set DISTFORGE_BUILD_CUDA=0"):
        setup.choose_nvcc("11.8")


def toolchain(**changes) -> object:
    values = {
        "cxx": "g++",
        "nvcc": None,
        "architectures": [],
        "torch_version": "2.13.0",
        "torch_lib": "/nowhere",
        "torch_cuda": True,
    }
    return setup.Toolchain(**{**values, **changes})


def test_where_the_kernels_do_not_compile_the_rest_is_built(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    monkeypatch.setattr(setup, "include_flags", list)
    monkeypatch.setenv("DISTFORGE_BUILD_CUDA", "auto")
    (tmp_path / "build").mkdir()
    nvcc = fake_nvcc(tmp_path, "13.0", "compute_75\n")
    built = []

    def ninja(folder: Path) -> bool:
        built.append("rule nvcc" in (tmp_path / folder / "build.ninja").read_text())
        (tmp_path / folder / "build.log").write_text(f"with nvcc: {built[-1]}")
        return not built[-1]

    monkeypatch.setattr(setup, "run_ninja", ninja)
    tools = toolchain(nvcc=nvcc, architectures=["75"])
    assert setup.build_with_ninja(tools, Path("build"), Path("build/_C.so"))
    assert built == [True, False]
    assert (tmp_path / "build" / "build-cuda.log").read_text() == "with nvcc: True"
    assert f"CUDA kernels: none (with {nvcc} it did not compile; " in capsys.readouterr().out
    monkeypatch.setenv("DISTFORGE_BUILD_CUDA", "1")
    with pytest.raises(SystemExit, match=r"=1, but it did not compile; .*log has the message"):
        setup.build_with_ninja(tools, Path("build"), Path("build/_C.so"))


WEAK = """
extern "C" __attribute__((weak)) int aoti_torch_get_current_cuda_stream(int, void**);
extern "C" int has_stream() { return aoti_torch_get_current_cuda_stream != nullptr; }
"""


def needed(library: Path) -> set[str]:
    listed = subprocess.run(
        ["readelf", "-d", str(library)], capture_output=True, text=True, check=True
    )
    return set(re.findall(r"NEEDED.*\[(.*)\]", listed.stdout))


@pytest.mark.skipif(NVCC is None, reason="no nvcc on this machine")
def test_the_kernels_are_linked_with_what_gives_them_the_stream(tmp_path):
    """By a linker that drops what is not needed, as Ubuntu's g++ always asks for."""
    compiler = tmp_path / "g++"
    compiler.write_text('#!/bin/sh\nexec g++ -Wl,--as-needed "$@"\n')
    compiler.chmod(0o755)
    (tmp_path / "weak.cpp").write_text(WEAK)
    (tmp_path / "stream.cpp").write_text(
        WEAK.split(";")[0].replace("__attribute__((weak)) ", "") + " { return 0; }"
    )
    (tmp_path / "empty.cpp").touch()
    for name, source in [("torch", "empty"), ("torch_cpu", "empty"), ("torch_cuda", "stream")]:
        library = str(tmp_path / f"lib{name}.so")
        shared = [str(compiler), "-shared", "-fPIC", str(tmp_path / f"{source}.cpp"), "-o", library]
        subprocess.run([*shared, f"-Wl,-soname,lib{name}.so"], check=True)
    subprocess.run(
        [str(compiler), "-fPIC", "-c", "weak.cpp", "-o", "weak.o"], cwd=tmp_path, check=True
    )
    tools = toolchain(cxx=str(compiler), nvcc=NVCC, torch_lib=str(tmp_path))
    places = {"$in": str(tmp_path / "weak.o"), "$out": str(tmp_path / "_C.so")}
    link = [places.get(word, word) for word in tools.link_command()]
    subprocess.run(link, check=True)
    assert "libtorch_cuda.so" in needed(tmp_path / "_C.so")
    # The words that make the difference.
    link.remove("-Xlinker=--no-as-needed")
    subprocess.run(link, check=True)
    assert "libtorch_cuda.so" not in needed(tmp_path / "_C.so")


def test_g_plus_plus_before_12_has_no_float16(tmp_path):
    """What it compiles of the extension must not name the type."""
    source = tmp_path / "all.cpp"
    headers = ["grokfast/launch.h", "orthogonal_update/launch.h", "newton_schulz/launch.h"]
    source.write_text("".join(f'#include "{header}"\n' for header in headers))
    flags = ["-U__FLT16_MAX__", "-D_Float16=no_such_type", "-Icsrc", "-std=c++20"]
    compiled = subprocess.run(
        ["g++", *flags, "-fsyntax-only", str(source)], cwd=ROOT, capture_output=True, text=True
    )
    assert compiled.returncode == 0, compiled.stderr


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


@pytest.mark.parametrize(
    "name", ["requirements.lock", "requirements-server.lock", "requirements-docs.lock"]
)
def test_a_lock_pins_every_requirement_with_hashes_and_names_no_place(name):
    pins = locked(name)
    assert all(pins.values())
    names = {canonicalize_name(pin.partition("==")[0]) for pin in pins}
    assert "torch" not in names
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    # Those that live in an environment of their own.
    apart = {extra: extras.pop(extra) for extra in ("server", "docs")}
    own = [group for extra, group in apart.items() if extra in name]
    groups = own or extras.values()
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
