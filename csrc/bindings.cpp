// Importing this module registers the operators of torch.ops.distforge; beside that it only tells
// how it was built. build_config.h is written by setup.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>

#include <map>
#include <string>

#include "build_config.h"
#include "common/cpu_capability.h"
#include "newton_schulz/blocks.h"

STABLE_TORCH_LIBRARY(distforge, m) {
  m.def(
      "grokfast_momentum_into_(Tensor[] grads, Tensor(a!)[] emas, Tensor(b!)[] momenta, "
      "Tensor(c!)[] updates, float alpha, float lamb, float beta, bool nesterov) -> ()");
  m.def("newton_schulz(Tensor x, float[] coefficients) -> Tensor");
  m.def(
      "orthogonal_update_(Tensor(a!)[] weights, Tensor[] updates, float lr, float weight_decay, "
      "float scale) -> ()");
  m.def(
      "small_muon_step_(Tensor(a!)[] weights, Tensor[] grads, Tensor(b!)[] emas, "
      "Tensor(c!)[] momenta, int[] rows, int[] columns, float[] scales, float[] coefficients, "
      "float lr, float weight_decay, float alpha, float lamb, float beta, bool nesterov) -> ()");
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native operators of distforge: build information, and torch.ops.distforge.*";
  m.def("build_info", [] {
    return std::map<std::string, std::string>{
        {"compiler", DISTFORGE_COMPILER},
        {"compiler_flags", DISTFORGE_COMPILER_FLAGS},
        {"built_with_torch", DISTFORGE_TORCH_VERSION},
        {"nvcc", DISTFORGE_NVCC},
        {"cuda_architectures", DISTFORGE_CUDA_ARCHITECTURES},
    };
  });
  m.def("cpu_capability", &distforge::cpu_capability_name);
  m.def("cpu_products", [] {
    using namespace distforge::newton_schulz;
    const std::string single = float_blocks().name;
    const auto* half = bfloat16_blocks();
    return single + "; bfloat16: " + (half != nullptr ? half->name : "as float32");
  });
}
