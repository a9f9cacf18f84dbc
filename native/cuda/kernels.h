// kernels.h: the kernels of the CUDA backend, all of the ABI's kernel type, by the op's name. The
// comment says the file under native/cuda/ that holds them.
#pragma once
#include "native/abi/backend.h"
#include "native/abi/params.h"

// clang-format off
#define AQ_CUDA_KERNELS                                                                           \
  /* kernels/elementwise.cu */                                                                    \
  AQ_CUDA_KERNEL(fill) AQ_CUDA_KERNEL(cast) AQ_CUDA_KERNEL(add) AQ_CUDA_KERNEL(axpy)              \
  AQ_CUDA_KERNEL(mul) AQ_CUDA_KERNEL(exp)                                                         \
  /* kernels/activation.cu */                                                                     \
  AQ_CUDA_KERNEL(silu_mul) AQ_CUDA_KERNEL(silu_mul_grad) AQ_CUDA_KERNEL(relu)                     \
  AQ_CUDA_KERNEL(relu_grad) AQ_CUDA_KERNEL(rope)                                                  \
  /* kernels/scale_weight.cu */                                                                   \
  AQ_CUDA_KERNEL(scale_weight) AQ_CUDA_KERNEL(scale_weight_grad)                                  \
  /* kernels/head_matmul.cu */                                                                    \
  AQ_CUDA_KERNEL(head_matmul) AQ_CUDA_KERNEL(head_matmul_grad)                                    \
  /* kernels/rotate_pairs.cu */                                                                   \
  AQ_CUDA_KERNEL(rotate_pairs) AQ_CUDA_KERNEL(rotate_pairs_grad)                                  \
  /* kernels/gradual_mask.cu */                                                                   \
  AQ_CUDA_KERNEL(gradual_mask)                                                                    \
  /* lu_inverse.cu */                                                                             \
  AQ_CUDA_KERNEL(lu_inverse)                                                                      \
  /* kernels/matmul.cu */                                                                         \
  AQ_CUDA_KERNEL(matmul)                                                                          \
  /* kernels/hadamard.cu */                                                                       \
  AQ_CUDA_KERNEL(hadamard)                                                                        \
  /* masked_adam.cu */                                                                            \
  AQ_CUDA_KERNEL(masked_adam)                                                                     \
  /* kernels/adam.cu */                                                                           \
  AQ_CUDA_KERNEL(adam) AQ_CUDA_KERNEL(keep_away) AQ_CUDA_KERNEL(sign_step)                        \
  /* kernels/quantize.cu */                                                                       \
  AQ_CUDA_KERNEL(quant_grid) AQ_CUDA_KERNEL(fake_quant) AQ_CUDA_KERNEL(quantize)                  \
  AQ_CUDA_KERNEL(dequantize)                                                                      \
  /* kernels/quant_operand.cu */                                                                  \
  AQ_CUDA_KERNEL(quant_operand)                                                                   \
  /* kernels/fake_quant_grad.cu */                                                                \
  AQ_CUDA_KERNEL(fake_quant_grad)                                                                 \
  /* kernels/fp4_operand.cu, kernels/fp4_values.cu, kernels/fp4_grad.cu */                        \
  AQ_CUDA_KERNEL(fp4_global) AQ_CUDA_KERNEL(fp4_operand) AQ_CUDA_KERNEL(fp4_values)               \
  AQ_CUDA_KERNEL(fp4_grad)                                                                        \
  /* fake_quant_gemm.cu */                                                                        \
  AQ_CUDA_KERNEL(fake_quant_gemm)                                                                 \
  /* kernels/gptq.cu */                                                                           \
  AQ_CUDA_KERNEL(gptq)                                                                            \
  /* kernels/norm.cu, kernels/norm_grad.cu */                                                     \
  AQ_CUDA_KERNEL(rms_norm) AQ_CUDA_KERNEL(rms_norm_grad) AQ_CUDA_KERNEL(layer_norm)               \
  AQ_CUDA_KERNEL(layer_norm_grad)                                                                 \
  /* kernels/norm_operand.cu, kernels/norm_operand_grad.cu */                                     \
  AQ_CUDA_KERNEL(rms_norm_operand) AQ_CUDA_KERNEL(rms_norm_operand_grad)                          \
  AQ_CUDA_KERNEL(layer_norm_operand) AQ_CUDA_KERNEL(layer_norm_operand_grad)                      \
  /* kernels/silu_mul_operand.cu, kernels/silu_mul_operand_grad.cu */                             \
  AQ_CUDA_KERNEL(silu_mul_operand) AQ_CUDA_KERNEL(silu_mul_operand_grad)                          \
  /* kernels/norm_fp4.cu, kernels/norm_fp4_grad.cu */                                             \
  AQ_CUDA_KERNEL(rms_norm_fp4) AQ_CUDA_KERNEL(rms_norm_fp4_grad)                                  \
  AQ_CUDA_KERNEL(layer_norm_fp4) AQ_CUDA_KERNEL(layer_norm_fp4_grad)                              \
  /* kernels/silu_mul_fp4.cu */                                                                   \
  AQ_CUDA_KERNEL(silu_mul_fp4) AQ_CUDA_KERNEL(silu_mul_fp4_grad)                                  \
  /* kernels/relu_operand.cu */                                                                   \
  AQ_CUDA_KERNEL(relu_operand) AQ_CUDA_KERNEL(relu_operand_grad)                                  \
  /* kernels/rope_grid.cu */                                                                      \
  AQ_CUDA_KERNEL(rope_grid) AQ_CUDA_KERNEL(rope_grid_grad)                                        \
  /* kernels/attention.cu, kernels/attention_grad.cu */                                           \
  AQ_CUDA_KERNEL(attention) AQ_CUDA_KERNEL(attention_grad)                                        \
  AQ_CUDA_KERNEL(attention_operand) AQ_CUDA_KERNEL(attention_operand_grad)                        \
  /* kernels/loss.cu, kernels/softmax_loss.cu */                                                  \
  AQ_CUDA_KERNEL(mse) AQ_CUDA_KERNEL(mse_grad) AQ_CUDA_KERNEL(kl_div) AQ_CUDA_KERNEL(kl_div_grad) \
  AQ_CUDA_KERNEL(sq_diff) AQ_CUDA_KERNEL(cross_entropy)                                           \
  /* kernels/statistics.cu */                                                                     \
  AQ_CUDA_KERNEL(gather_rows) AQ_CUDA_KERNEL(channel_stats) AQ_CUDA_KERNEL(all_finite)            \
  /* kernels/draw_tokens.cu */                                                                    \
  AQ_CUDA_KERNEL(draw_tokens)                                                                     \
  /* kernels/cached_attention.cu */                                                               \
  AQ_CUDA_KERNEL(cached_attention)                                                                \
  /* kernels/decode_step.cu */                                                                    \
  AQ_CUDA_KERNEL(norm_rounded) AQ_CUDA_KERNEL(silu_mul_joined)                                    \
  /* int4_pack.cu, int4_matmul.cu */                                                              \
  AQ_CUDA_KERNEL(int4_pack) AQ_CUDA_KERNEL(int4_matmul)                                           \
  /* int8_pack.cu, int8_matmul.cu */                                                              \
  AQ_CUDA_KERNEL(int8_pack) AQ_CUDA_KERNEL(int8_matmul)                                           \
  /* fp4_pack.cu, fp4_matmul.cu */                                                                \
  AQ_CUDA_KERNEL(fp4_pack) AQ_CUDA_KERNEL(fp4_matmul)
// clang-format on

namespace aq::cuda {

#define AQ_CUDA_KERNEL(name)                                                         \
  int32_t name(aq_queue* queue, const aq_view* in, int32_t n_in, const aq_view* out, \
               int32_t n_out, const void* params, aq_error* err);
AQ_CUDA_KERNELS
#undef AQ_CUDA_KERNEL

}  // namespace aq::cuda
