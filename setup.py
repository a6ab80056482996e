"""Builds distforge._C through ninja: the C++ part always, the CUDA part where it can run.

DISTFORGE_BUILD_CUDA=auto|0|1   auto: when nvcc is found and torch is a CUDA build of the same major
                                version; 1: always (an error without nvcc; with a CPU torch the
                                kernels are compiled and linked, and never reached)
MAX_JOBS=N                      compile at most N files at a time

Everything goes through torch's stable ABI, so the module outlives a torch upgrade, and nvcc is
called by a plain ninja rule: torch's CUDAExtension refuses to work with a CPU torch.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"

# The oldest torch that the package admits: using nothing newer, one build serves all.
TORCH_TARGET_VERSION = (2, 11)

# 90a instead of 90: every GPU of 9.0 runs it; with code of both, the driver would choose.
CUDA_ARCHITECTURES = ("75", "80", "86", "89", "90a", "100", "103", "110", "120")

CXX_FLAGS = [
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
]
NVCC_FLAGS = [
    "-std=c++20",
    "-O3",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    "-Icsrc",
    "-Xfatbin=-compress-all",
    "--threads=4",
]


def fail(message: str) -> SystemExit:
    return SystemExit(f"distforge: {message}")


def import_torch():
    try:
        import torch
    except ImportError:
        raise fail(
            "torch is not importable in the environment that builds the extension; install torch "
            "first, then run `pip install --no-build-isolation .` (`make setup` does both)"
        ) from None
    installed = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if installed < TORCH_TARGET_VERSION:
        wanted = ".".join(map(str, TORCH_TARGET_VERSION))
        raise fail(f"torch {torch.__version__} is too old: install torch >= {wanted}")
    return torch


def find_nvcc() -> str | None:
    """nvcc of CUDA_HOME, of PATH, or of the customary folder; in this order."""
    candidates = [
        str(Path(os.environ["CUDA_HOME"]) / "bin" / "nvcc") if "CUDA_HOME" in os.environ else None,
        shutil.which("nvcc"),
        "/usr/local/cuda/bin/nvcc",
    ]
    return next((c for c in candidates if c and os.access(c, os.X_OK)), None)


def nvcc_version(nvcc: str) -> tuple[int, int]:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"release (\d+)\.(\d+)", text)
    if found is None:
        raise fail(f"{nvcc} --version names no release: {text.strip()!r}")
    return int(found[1]), int(found[2])


def supported_architectures(nvcc: str) -> list[str]:
    """Those of CUDA_ARCHITECTURES that this nvcc compiles for.

    nvcc lists no architecture-specific targets (90a); it knows them where it knows the base.
    """
    listed = subprocess.run(
        [nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True
    ).stdout
    known = set(re.findall(r"compute_(\d+)", listed))
    return [arch for arch in CUDA_ARCHITECTURES if arch.rstrip("a") in known]


def gencode_flags(architectures: list[str]) -> list[str]:
    """Machine code for each architecture, and PTX of the newest for the GPUs to come."""
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in architectures]
    newest = architectures[-1]
    return [*flags, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


def choose_nvcc(torch_cuda: str | None) -> tuple[str | None, str]:
    """The nvcc to compile the CUDA part with, or None; and the reason in words."""
    wish = os.environ.get("DISTFORGE_BUILD_CUDA", "auto")
    if wish not in ("auto", "0", "1"):
        raise fail(f"DISTFORGE_BUILD_CUDA={wish!r}: expected auto, 0 or 1")
    if wish == "0":
        return None, "DISTFORGE_BUILD_CUDA=0"
    nvcc = find_nvcc()
    if nvcc is None:
        if wish == "1":
            raise fail(
                "DISTFORGE_BUILD_CUDA=1, but nvcc was found neither under CUDA_HOME nor on PATH "
                "nor in /usr/local/cuda; install the CUDA toolkit or set DISTFORGE_BUILD_CUDA=0"
            )
        return None, "no nvcc"
    if wish == "1":
        return nvcc, f"DISTFORGE_BUILD_CUDA=1, {nvcc}"
    if torch_cuda is None:
        return None, "torch is a CPU build"
    if int(torch_cuda.split(".")[0]) != nvcc_version(nvcc)[0]:
        return None, f"torch was built with CUDA {torch_cuda}, {nvcc} is of another major version"
    return nvcc, nvcc


def include_flags() -> list[str]:
    import pybind11
    from torch.utils import cpp_extension

    system = [*cpp_extension.include_paths(), pybind11.get_include(), sysconfig.get_path("include")]
    return ["-Icsrc", *(flag for path in system for flag in ("-isystem", path))]


def define_flags() -> list[str]:
    major, minor = TORCH_TARGET_VERSION
    return [f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}000000000000"]


@dataclass(frozen=True)
class Toolchain:
    """What the ninja file and build_config.h are written from."""

    cxx: str
    nvcc: str | None
    architectures: list[str]
    torch_version: str
    torch_lib: str
    torch_cuda: bool

    @classmethod
    def find(cls) -> Toolchain:
        torch = import_torch()
        nvcc, reason = choose_nvcc(torch.version.cuda)
        architectures = supported_architectures(nvcc) if nvcc else []
        print(
            f"distforge: CUDA kernels: {' '.join(architectures) or 'none'} ({reason})", flush=True
        )
        return cls(
            cxx=os.environ.get("CXX", "g++"),
            nvcc=nvcc,
            architectures=architectures,
            torch_version=torch.__version__,
            torch_lib=str(Path(torch.__file__).parent / "lib"),
            torch_cuda=torch.version.cuda is not None,
        )

    def sources(self) -> list[Path]:
        """Kernels are .cu without torch, which nvcc compiles fast for many architectures; what
        binds them to torch is *_cuda.cpp. Both are left out of a CPU build."""
        if self.nvcc:
            return sorted([*CSRC.rglob("*.cpp"), *CSRC.rglob("*.cu")])
        return sorted(path for path in CSRC.rglob("*.cpp") if not path.stem.endswith("_cuda"))

    def nvcc_flags(self) -> list[str]:
        return [*NVCC_FLAGS, *gencode_flags(self.architectures)]

    def link_command(self) -> list[str]:
        libraries = ["-ltorch", "-ltorch_cpu", *(["-ltorch_cuda"] if self.torch_cuda else [])]
        torch = [f"-L{self.torch_lib}", *libraries]
        if self.nvcc:
            return [self.nvcc, "-shared", "-cudart=static", "$in", "-o", "$out", *torch]
        return [self.cxx, "-shared", "$in", "-o", "$out", *torch]


def config_header(tools: Toolchain) -> str:
    version = subprocess.run(
        [tools.cxx, "--version"], capture_output=True, text=True, check=True
    ).stdout.splitlines()[0]
    nvcc = ".".join(map(str, nvcc_version(tools.nvcc))) if tools.nvcc else "none"
    values = {
        "COMPILER": version,
        "COMPILER_FLAGS": " ".join(CXX_FLAGS),
        "TORCH_VERSION": tools.torch_version,
        "NVCC": nvcc,
        "CUDA_ARCHITECTURES": " ".join(tools.architectures) or "none",
    }
    lines = [f'#define DISTFORGE_{name} "{value}"' for name, value in values.items()]
    return "\n".join(["#pragma once", *lines, ""])


def ninja_escape(path: Path | str) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))


def ninja_file(tools: Toolchain, folder: Path, output: Path) -> str:
    """Rules for a ninja that runs in ROOT: sources are named from there, so that __FILE__ in an
    error message is a path inside the project and not one of the builder's disk."""
    shared = shlex.join([*define_flags(), f"-I{folder}", *include_flags()])
    lines = [
        f"builddir = {folder}",
        "rule cxx",
        f"  command = {tools.cxx} -MMD -MF $out.d {shlex.join(CXX_FLAGS)} {shared} -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = g++ $in",
    ]
    if tools.nvcc:
        nvcc = f"{tools.nvcc} -MD -MF $out.d {shlex.join(tools.nvcc_flags())}"
        lines += [
            "rule nvcc",
            f"  command = {nvcc} -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = nvcc $in",
        ]
    lines += ["rule link", f"  command = {' '.join(tools.link_command())}", "  description = link"]
    objects = []
    for source in tools.sources():
        inside = source.relative_to(CSRC)
        target = ninja_escape(folder / (str(inside).replace("/", "-") + ".o"))
        rule = "nvcc" if source.suffix == ".cu" else "cxx"
        lines.append(f"build {target}: {rule} {ninja_escape(Path('csrc') / inside)}")
        objects.append(target)
    lines += [f"build {ninja_escape(output)}: link {' '.join(objects)}", ""]
    return "\n".join(lines)


def write_if_changed(path: Path, text: str) -> None:
    # An untouched file keeps its time, and ninja compiles nothing again.
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def find_ninja() -> str:
    beside_python = Path(sys.executable).parent / "ninja"
    found = str(beside_python) if beside_python.exists() else shutil.which("ninja")
    if found is None:
        raise fail("ninja was not found; `pip install ninja` and run the build again")
    return found


class NinjaBuild(build_ext):
    """build_ext for the one extension: writes build.ninja, runs ninja, puts the module in place."""

    def build_extension(self, ext: Extension) -> None:
        tools = Toolchain.find()
        if shutil.which(tools.cxx) is None:
            raise fail(f"the C++ compiler {tools.cxx!r} was not found; install g++ or set CXX")
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        # One folder per interpreter: pip's own temporary folder would forget every object.
        folder = Path("build") / f"native-{sys.implementation.cache_tag}"
        (ROOT / folder).mkdir(parents=True, exist_ok=True)
        module = folder / output.name
        write_if_changed(ROOT / folder / "build_config.h", config_header(tools))
        write_if_changed(ROOT / folder / "build.ninja", ninja_file(tools, folder, module))
        jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        ninja = [find_ninja(), "-f", str(folder / "build.ninja"), *jobs]
        if subprocess.run(ninja, cwd=ROOT).returncode != 0:
            raise fail(
                "the native extension did not compile; the message of the compiler stands above "
                "(a missing Python.h means that the headers of Python are not installed)"
            )
        self.copy_file(str(ROOT / module), str(output))


if __name__ == "__main__":
    headers_and_sources = [str(p.relative_to(ROOT)) for p in sorted(CSRC.rglob("*.*"))]
    setup(
        # `depends` carries csrc into a source distribution; the list of sources is ninja's own.
        ext_modules=[Extension("distforge._C", sources=[], depends=headers_and_sources)],
        cmdclass={"build_ext": NinjaBuild},
    )
