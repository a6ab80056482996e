"""Packs distforge and builds its native part, distforge._C: C++, and CUDA where it can run.

DISTFORGE_BUILD_NATIVE=auto|0|1 auto: where torch, pybind11, ninja and a C++ compiler are found; if
                                one is missing, or it does not compile, distforge says so and
                                installs without; 1: an error if it cannot be built; 0: never
DISTFORGE_BUILD_CUDA=auto|0|1   auto: when nvcc is found and torch is a CUDA build of the same major
                                version; where it does not compile, the CPU's part alone is built;
                                1: always (an error without nvcc or where it does not compile; with
                                a CPU torch the kernels are compiled and linked, and never reached)
DISTFORGE_CUDA_ARCHITECTURES="80 90a"
                                compile the kernels for these alone, which takes less time
CXX=PROGRAM                     the C++ compiler, nvcc's too
MAX_JOBS=N                      compile at most N files at a time

Everything goes through torch's stable ABI, so the module outlives a torch upgrade, and nvcc is
called by a plain ninja rule: torch's CUDAExtension refuses to work with a CPU torch.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
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
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
CONFIGS = ROOT / "configs"

# Beside the module that is not there: why. pip shows nothing of what a build prints.
REASON_FILE = "distforge/native_part.txt"

# The oldest torch that the package admits: using nothing newer, one build serves all.
TORCH_TARGET_VERSION = (2, 11)

# The oldest toolkit whose nvcc knows C++20.
OLDEST_NVCC = (12, 0)

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


def wish(variable: str) -> str:
    """auto, 0 or 1, as the environment has it."""
    value = os.environ.get(variable, "auto")
    if value not in ("auto", "0", "1"):
        raise fail(f"{variable}={value!r}: expected auto, 0 or 1")
    return value


def what_is_missing() -> str:
    """What building the native part lacks, with the remedy; empty when all is there.

    torch is looked up and not imported: this is asked at every step of an installation.
    """
    if importlib.util.find_spec("torch") is None:
        return (
            "torch is not in the environment that builds; install torch, then "
            "`pip install --no-build-isolation .` (pip builds in an environment without it)"
        )
    version = importlib.metadata.version("torch")
    if tuple(int(part) for part in version.split(".")[:2]) < TORCH_TARGET_VERSION:
        wanted = ".".join(map(str, TORCH_TARGET_VERSION))
        return f"torch {version} is too old; install torch >= {wanted}"
    if shutil.which(cxx()) is None:
        return f"the C++ compiler {cxx()!r} was not found; install g++ or set CXX"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 was not found; `pip install pybind11`"
    if find_ninja() is None:
        return "ninja was not found; `pip install ninja`"
    return ""


def why_not_native() -> str:
    """Why the native part is not to be built; empty when it is."""
    if wish("DISTFORGE_BUILD_NATIVE") == "0":
        return "DISTFORGE_BUILD_NATIVE=0"
    return what_is_missing()


def go_without(reason: str, package: Path) -> None:
    """Say why there is no native part, here and in the package at ``package``'s first use of it.

    Raises:
        SystemExit: DISTFORGE_BUILD_NATIVE=1.
    """
    if wish("DISTFORGE_BUILD_NATIVE") == "1":
        raise fail(f"DISTFORGE_BUILD_NATIVE=1, but {reason}")
    print(f"distforge: native part: none ({reason})", flush=True)
    if package == ROOT:
        # One from before would go on running, whatever has become of its source.
        (ROOT / "distforge" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").unlink(missing_ok=True)
        return
    (package / REASON_FILE).parent.mkdir(parents=True, exist_ok=True)
    (package / REASON_FILE).write_text(f"{reason}\n", encoding="utf-8")


def cxx() -> str:
    return os.environ.get("CXX", "g++")


def find_nvcc() -> str | None:
    """nvcc of CUDA_HOME, of PATH, or of the customary folder; in this order."""
    candidates = [
        str(Path(os.environ["CUDA_HOME"]) / "bin" / "nvcc") if "CUDA_HOME" in os.environ else None,
        shutil.which("nvcc"),
        "/usr/local/cuda/bin/nvcc",
    ]
    return next((c for c in candidates if c and os.access(c, os.X_OK)), None)


def nvcc_version(nvcc: str) -> tuple[int, int]:
    text = subprocess.run(
        [nvcc, "--version"], capture_output=True, encoding="utf-8", check=True
    ).stdout
    found = re.search(r"release (\d+)\.(\d+)", text)
    if found is None:
        raise fail(f"{nvcc} --version names no release: {text.strip()!r}")
    return int(found[1]), int(found[2])


def supported_architectures(nvcc: str) -> list[str]:
    """Those of CUDA_ARCHITECTURES that this nvcc compiles for.

    nvcc lists no architecture-specific targets (90a); it knows them where it knows the base.
    """
    listed = subprocess.run(
        [nvcc, "--list-gpu-arch"], capture_output=True, encoding="utf-8", check=True
    ).stdout
    known = set(re.findall(r"compute_(\d+)", listed))
    wanted = os.environ.get("DISTFORGE_CUDA_ARCHITECTURES", "").split() or CUDA_ARCHITECTURES
    unknown = [arch for arch in wanted if arch not in CUDA_ARCHITECTURES]
    if unknown:
        raise fail(
            f"DISTFORGE_CUDA_ARCHITECTURES names {unknown[0]}: expected some of "
            f"{' '.join(CUDA_ARCHITECTURES)}"
        )
    return [arch for arch in wanted if arch.rstrip("a") in known]


def gencode_flags(architectures: list[str]) -> list[str]:
    """Machine code for each architecture, and PTX of the newest for the GPUs to come."""
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in architectures]
    newest = architectures[-1]
    return [*flags, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


def choose_nvcc(torch_cuda: str | None) -> tuple[str | None, str]:
    """The nvcc to compile the CUDA part with, or None; and the reason in words."""
    cuda = wish("DISTFORGE_BUILD_CUDA")
    if cuda == "0":
        return None, "DISTFORGE_BUILD_CUDA=0"
    nvcc = find_nvcc()
    problem = why_not_nvcc(nvcc)
    if problem:
        if cuda == "1":
            raise fail(f"DISTFORGE_BUILD_CUDA=1, but {problem}, or set DISTFORGE_BUILD_CUDA=0")
        return None, problem
    if cuda == "1":
        return nvcc, f"DISTFORGE_BUILD_CUDA=1, {nvcc}"
    if torch_cuda is None:
        return None, "torch is a CPU build"
    if int(torch_cuda.split(".")[0]) != nvcc_version(nvcc)[0]:
        version = ".".join(map(str, nvcc_version(nvcc)))
        return None, (
            f"torch was built with CUDA {torch_cuda}, {nvcc} is of {version}; install a toolkit of "
            f"CUDA {torch_cuda.split('.')[0]} and set CUDA_HOME to it"
        )
    return nvcc, nvcc


def why_not_nvcc(nvcc: str | None) -> str:
    """Why this nvcc cannot compile the kernels, with the remedy; empty when it can."""
    oldest = ".".join(map(str, OLDEST_NVCC))
    if nvcc is None:
        return (
            "nvcc was found neither under CUDA_HOME nor on PATH nor in /usr/local/cuda; install "
            f"the CUDA toolkit ({oldest} or newer)"
        )
    version = nvcc_version(nvcc)
    if version < OLDEST_NVCC:
        return (
            f"{nvcc} is of CUDA {'.'.join(map(str, version))}, too old for C++20; install the CUDA "
            f"toolkit {oldest} or newer"
        )
    return ""


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
        import torch

        return cls.with_nvcc(*choose_nvcc(torch.version.cuda))

    @classmethod
    def with_nvcc(cls, nvcc: str | None, reason: str) -> Toolchain:
        import torch

        architectures = supported_architectures(nvcc) if nvcc else []
        print(
            f"distforge: CUDA kernels: {' '.join(architectures) or 'none'} ({reason})", flush=True
        )
        return cls(
            cxx=cxx(),
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
        # The host's part by the same compiler as everything else, which may not be nvcc's own.
        return [f"-ccbin={self.cxx}", *NVCC_FLAGS, *gencode_flags(self.architectures)]

    def link_command(self) -> list[str]:
        torch = [f"-L{self.torch_lib}", "-ltorch", "-ltorch_cpu"]
        if not self.nvcc:
            return [self.cxx, "-shared", "$in", "-o", "$out", *torch]
        if self.torch_cuda:
            # Its one symbol is referenced weakly (cuda_stream.h), for which a linker that is asked
            # to drop what is not needed, as Ubuntu's always is, would drop the library.
            torch += ["-Xlinker=--no-as-needed", "-ltorch_cuda"]
        command = [self.nvcc, f"-ccbin={self.cxx}", "-shared", "-cudart=static"]
        return [*command, "$in", "-o", "$out", *torch]


def config_header(tools: Toolchain) -> str:
    version = subprocess.run(
        [tools.cxx, "--version"], capture_output=True, encoding="utf-8", check=True
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
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def find_ninja() -> str | None:
    beside_python = Path(sys.executable).parent / "ninja"
    return str(beside_python) if beside_python.exists() else shutil.which("ninja")


def run_ninja(folder: Path) -> bool:
    """Whether ninja built all; what it and the compilers said is shown and kept in build.log."""
    jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
    command = [find_ninja(), "-f", str(folder / "build.ninja"), *jobs]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    )
    with (ROOT / folder / "build.log").open("w", encoding="utf-8") as log:
        for line in process.stdout:
            print(line, end="", flush=True)
            log.write(line)
    return process.wait() == 0


def build_with_ninja(tools: Toolchain, folder: Path, module: Path) -> bool:
    """Whether ``module`` was built: with CUDA where ``tools`` has it and, where that does not
    compile, without.

    Raises:
        SystemExit: it does not compile with CUDA, and DISTFORGE_BUILD_CUDA=1.
    """
    write_if_changed(ROOT / folder / "build_config.h", config_header(tools))
    write_if_changed(ROOT / folder / "build.ninja", ninja_file(tools, folder, module))
    if run_ninja(folder):
        return True
    if tools.nvcc is None:
        return False
    if wish("DISTFORGE_BUILD_CUDA") == "1":
        log = ROOT / folder / "build.log"
        raise fail(f"DISTFORGE_BUILD_CUDA=1, but it did not compile; {log} has the message")
    kept = folder / "build-cuda.log"
    (ROOT / folder / "build.log").replace(ROOT / kept)
    reason = f"with {tools.nvcc} it did not compile; {ROOT / kept} has the compiler's message"
    return build_with_ninja(Toolchain.with_nvcc(None, reason), folder, module)


class NinjaBuild(build_ext):
    """build_ext for the one extension: writes build.ninja, runs ninja, puts the module in place."""

    def build_extension(self, ext: Extension) -> None:
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        # One folder per interpreter: pip's own temporary folder would forget every object.
        folder = Path("build") / f"native-{sys.implementation.cache_tag}"
        (ROOT / folder).mkdir(parents=True, exist_ok=True)
        module = folder / output.name
        if build_with_ninja(Toolchain.find(), folder, module):
            self.copy_file(str(ROOT / module), str(output))
            return
        # Not `output`'s own folder: an editable build has it elsewhere and copies it in place.
        in_place = self.inplace or self.editable_mode
        go_without(
            f"it did not compile; {ROOT / folder / 'build.log'} has the compiler's message (a "
            "missing Python.h means that the headers of Python are not installed)",
            ROOT if in_place else Path(self.build_lib),
        )


class PackedBuild(build_py):
    """build_py that packs configs/ into the package, and says where there is no native part."""

    def run(self) -> None:
        super().run()
        reason = why_not_native()
        if reason:
            go_without(reason, ROOT if self.editable_mode else Path(self.build_lib))
        if not self.editable_mode:
            for source, target in self.configurations().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def configurations(self) -> dict[str, str]:
        files = sorted(CONFIGS.glob("*.toml"))
        inside = Path(self.build_lib) / "distforge" / "configs"
        return {str(file.relative_to(ROOT)): str(inside / file.name) for file in files}

    def get_source_files(self) -> list[str]:
        # What a source distribution needs, wherever it is made: ninja has its own list of csrc.
        native = [str(path.relative_to(ROOT)) for path in sorted(CSRC.rglob("*.*"))]
        return [*super().get_source_files(), *self.configurations(), *native]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        own = [] if self.editable_mode else list(self.configurations().values())
        return [*super().get_outputs(include_bytecode), *own]


if __name__ == "__main__":
    setup(
        # Without one, the wheel is a pure one. It is optional to setuptools, which must not miss it
        # where a compiler is there and fails.
        ext_modules=[] if why_not_native() else [Extension("distforge._C", [], optional=True)],
        cmdclass={"build_ext": NinjaBuild, "build_py": PackedBuild},
    )
