// operand_params.h: the part of params.h with the ops that take in the quantizer behind them, by its
// conventions.
//
// What only products read is quantized in the pass that makes it: quant_operand (I8, asymmetric, whole
// rows, rule 0) of what the op in front gives, to the same bytes, and in the gradients fake_quant_grad
// of that, made again, and on to its inputs. clip T[1]?: the logit of both factors, absent: none.
#pragma once
#include <stdint.h>

// rms_norm_operand(x T[M,C], w T[C], b T[C]?, clip?) -> (rstd T[M], scale T[M,1], zero T[M,1], y I8[M,C])
typedef struct { double eps, floor; int32_t bits, pad; } aq_rms_norm_operand_params;
// rms_norm_operand_grad(x, w, b?, clip?, rstd, scale, zero, g T[M,C])
//     -> (gx T[M,C], or [0] where need_gx is 0, gw T[C], gb T like b, else [0], gclip T like clip, else [0])
typedef struct { double floor; int32_t bits, need_gx; } aq_rms_norm_operand_grad_params;
// layer_norm_operand(x T[M,C], w T[C], b T[C], clip?)
//     -> (mean T[M], rstd T[M], scale T[M,1], zero T[M,1], y I8[M,C])
typedef struct { double eps, floor; int32_t bits, pad; } aq_layer_norm_operand_params;
// layer_norm_operand_grad(x, w, b, clip?, mean, rstd, scale, zero, g T[M,C])
//     -> (gx T[M,C], or [0] where need_gx is 0, gw T[C], gb T[C], gclip T like clip, else [0])
typedef struct { double floor; int32_t bits, need_gx; } aq_layer_norm_operand_grad_params;
// silu_mul_operand(gate T[M,F], up T, clip?) -> (scale T[M,1], zero T[M,1], y I8[M,F])
typedef struct { double floor; int32_t bits, pad; } aq_silu_mul_operand_params;
// silu_mul_operand_grad(gate T[M,F], up T, clip?, scale, zero, g T[M,F])
//     -> (ggate, gup, both BF16 where bf16 (T = f32), gclip T like clip, else [0])
typedef struct { double floor; int32_t bits, bf16; } aq_silu_mul_operand_grad_params;
// relu_operand(x T[M,F], clip?) -> (scale T[M,1], zero T[M,1], y I8[M,F])
typedef struct { double floor; int32_t bits, pad; } aq_relu_operand_params;
// relu_operand_grad(x T[M,F], clip?, scale, zero, g T[M,F]) -> (gx, BF16 where bf16, gclip), as silu_mul's
typedef struct { double floor; int32_t bits, bf16; } aq_relu_operand_grad_params;
// attention_operand(q, k, v, q_scale?, q_zero?, k_scale?, k_zero?, v_scale?, v_zero?, clip?)
//     -> (o, lse, kept as attention's, scale T[B*T,1], zero T[B*T,1], y I8 like o)     row_bits: of y
typedef struct { double scale, floor; int32_t heads, kv_heads, bits, row_bits, keep, pad; } aq_attention_operand_params;
// attention_operand_grad(q, k, v, q_scale?, q_zero?, k_scale?, k_zero?, v_scale?, v_zero?, clip?, o, lse, scale,
//     zero, g T[B,T,H*D], kept?) -> (gq, gk, gv as attention_grad's, gclip T like clip, else [0])
typedef struct { double scale, floor; int32_t heads, kv_heads, bits, row_bits; } aq_attention_operand_grad_params;
// rope_grid(x T[M, heads*D], cos T[T, D/2], sin T[T, D/2], clip?) -> (y as rope's, scale T[M,heads], zero)
//   and quant_grid of each head of y (asymmetric, rule 0), which attention reads
typedef struct { double floor; int32_t heads, bits; } aq_rope_grid_params;
// rope_grid_grad(y, cos, sin, clip?, scale, zero, g T like y) -> (gx, BF16 where bf16, gclip T like clip, else [0])
typedef struct { double floor; int32_t heads, bits, bf16, pad; } aq_rope_grid_grad_params;

// The same with the quantizer of 4-bit floats behind the op: fp4_operand without clip, to the same bytes, and
// fp4_grad of it. format and T as there; y is what dtype says, T or BF16; G = columns / group. global is the g
// in use: fp4_global of the result where own is 1 (NVFP4 alone, and g is absent then), else g, or 1.
// rms_norm_fp4(x T[M,C], w T[C], b T[C]?, g T[1]?)
//     -> (rstd T[M], global T[1], scale T[M,G], factor T[1], y[M,C])
typedef struct { double eps; int32_t format, dtype, own, pad; } aq_rms_norm_fp4_params;
// rms_norm_fp4_grad(x, w, b?, g?, rstd, scale, grad T[M,C])
//     -> (gx T[M,C], or [0] where need_gx is 0, gw T[C], gb T like b, else [0])
typedef struct { int32_t format, need_gx; } aq_rms_norm_fp4_grad_params;
// layer_norm_fp4(x T[M,C], w T[C], b T[C], g T[1]?)
//     -> (mean T[M], rstd T[M], global T[1], scale T[M,G], factor T[1], y[M,C])
typedef struct { double eps; int32_t format, dtype, own, pad; } aq_layer_norm_fp4_params;
// layer_norm_fp4_grad(x, w, b, g?, mean, rstd, scale, grad T[M,C])
//     -> (gx T[M,C], or [0] where need_gx is 0, gw T[C], gb T[C])
typedef struct { int32_t format, need_gx; } aq_layer_norm_fp4_grad_params;
// silu_mul_fp4(gate T[M,F], up T, g T[1]?) -> (global T[1], scale T[M,G], factor T[1], y[M,F])
typedef struct { int32_t format, dtype, own, pad; } aq_silu_mul_fp4_params;
// silu_mul_fp4_grad(gate T[M,F], up T, g?, scale, grad T[M,F]) -> (ggate, gup), both BF16 where bf16 (T = f32)
typedef struct { int32_t format, bf16; } aq_silu_mul_fp4_grad_params;
