// Two fused ops of libtorch that tch has no binding for. Tensors come as tch holds them: pointers
// to at::Tensor, borrowed for the call. A function returns nullptr, or what went wrong, to be
// released by altiplano_free_message.

#include <cstdlib>
#include <cstring>
#include <exception>

#include <ATen/core/Tensor.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_scaled_dot_product_flash_attention.h>

namespace {

// Runs `body`: no exception crosses into Rust.
template <typename Body> char *guarded(Body &&body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception &error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("libtorch threw something that is no exception");
  }
}

} // namespace

extern "C" {

void altiplano_free_message(char *message) { std::free(message); }

// torch.optim.AdamW's fused step on one parameter, in place. `step` is a scalar f32 tensor.
char *altiplano_fused_adamw(const at::Tensor *param, const at::Tensor *grad, const at::Tensor *m,
                            const at::Tensor *v, const at::Tensor *step, double lr, double beta1,
                            double beta2, double weight_decay, double eps) {
  return guarded([&] {
    at::_fused_adamw_({*param}, {*grad}, {*m}, {*v}, /*max_exp_avg_sqs=*/{}, {*step}, lr, beta1,
                      beta2, weight_decay, eps, /*amsgrad=*/false, /*maximize=*/false);
  });
}

// Causal flash attention on a CUDA device. q, k, v (B, H, T, D); *out becomes the output
// (B, H, T, D) and *lse the log-sum-exp of the rows (B, H, T); the caller owns both.
char *altiplano_cuda_flash_attention(const at::Tensor *q, const at::Tensor *k, const at::Tensor *v,
                                     bool is_causal, at::Tensor **out, at::Tensor **lse) {
  return guarded([&] {
    auto result =
        at::_scaled_dot_product_flash_attention(*q, *k, *v, /*dropout_p=*/0.0, is_causal);
    *out = new at::Tensor(std::get<0>(result));
    *lse = new at::Tensor(std::get<1>(result));
  });
}
}
