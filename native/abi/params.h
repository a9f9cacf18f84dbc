// params.h: one plain struct of parameters per op, shared by core (which fills it from JavaScript
// by the op's field table), cpu and cuda. Above each struct: the op's inputs and outputs, its math.
//
// Conventions: x? is optional. T = f32 or f64, the same for every T of one call. Letters: B batch,
// T tokens, C hidden, H query heads, Hkv kv heads, D head size, O/I out/in features, V vocabulary.
// [M, K] means: the last dimension is K, all leading ones are flattened to M. Grids: a matrix
// [M, K] is cut along K into groups of `group` (0 = whole row; the last group may be short), so
// G = ceil(K / group) and scale, zero are [M, G].
// `!` marks an input that is written in place. A group in { } may repeat.
// S is T, or, with T = f32, BF16 or F16: numbers that lie short and are computed with in f32. G is the
// type of a gradient of an S: T where S is T, BF16 where S is short. What an S gives, as a gradient
// or not, is rounded once, to nearest even.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// ---------------------------------------------------------------- elementwise
// fill(x! any) -> ()                       x = value
typedef struct { double value; } aq_fill_params;
// cast(x any) -> (y dtype)                 numeric conversion, round to nearest even; also plain copy
typedef struct { int32_t dtype; int32_t pad; } aq_cast_params;
// add(a T, b T) -> (y)                     y = a + alpha b, same shape
typedef struct { double alpha; } aq_add_params;
// axpy(y! T, x T) -> ()                    y += alpha x, same numel
typedef struct { double alpha; } aq_axpy_params;
// mul(a T, b T) -> (y)                     y = alpha a b, same shape
typedef struct { double alpha; } aq_mul_params;
// exp(x T) -> (y)                          y = e^(scale x)
typedef struct { double scale; } aq_exp_params;

// ---------------------------------------------------------------- folds on the weight side
// scale_weight(w S[O,I], r T[O]?, c T[I]?) -> (y S[O,I])             y_oi = r_o w_oi c_i
typedef struct { int32_t pad[2]; } aq_scale_weight_params;
// scale_weight_grad(w S, r?, c?, g G[O,I]) -> (gr T[O], gc T[I])     absent r (c) counts as ones
typedef struct { int32_t pad[2]; } aq_scale_weight_grad_params;
// head_matmul(w S, m M[Hkv,D,D]) -> (y like w)   M: T, or BF16 or F16 where T is f32
//   one D x D matrix per kv head, shared by its group; of a short w, products are of its type where
//   less than f32 is asked for
//   side 0 (rows): w [heads*D, I], y_h = op(m_{h/(heads/Hkv)}) w_h      (a bias [heads*D] has I = 1)
//   side 1 (cols): w [O, heads*D], y_h = w_h op(m_...)                  op = transpose if `transpose`
typedef struct { int32_t side, transpose, heads, pad; } aq_head_matmul_params;
// head_matmul_grad(w S, g G[O,I]) -> (gm T[kv_heads,D,D])
//   accumulate: gm (then given by the caller) += ... instead of =.
typedef struct { int32_t side, transpose, heads, kv_heads, accumulate, pad; } aq_head_matmul_grad_params;
// rotate_pairs(w S[heads*D, I], log_r T[Hkv,D/2], theta T[Hkv,D/2]) -> (y like w)
//   rows (i, i+D/2) of head h, f = e^(sign_r log_r), a = sign_theta theta of its kv head:
//   y_i = f (w_i cos a - w_{i+D/2} sin a), y_{i+D/2} = f (w_{i+D/2} cos a + w_i sin a)
typedef struct { int32_t heads, sign_r, sign_theta, pad; } aq_rotate_pairs_params;
// rotate_pairs_grad(y S[heads*D, I] (the forward output), g G like y) -> (glog_r, gtheta T[kv_heads,D/2])
typedef struct { int32_t heads, kv_heads, sign_r, sign_theta; } aq_rotate_pairs_grad_params;
// gradual_mask(s T[B,D,D]) -> (a)          a_ij = s_ij (i=j), sf s_ij (0<|i-j|<=band), 0 elsewhere
typedef struct { double sf; int32_t band; int32_t pad; } aq_gradual_mask_params;

// ---------------------------------------------------------------- linear algebra
// lu_inverse(a T[B,D,D], x0 T[B,D,D]?) -> (x T[B,D,D])      LU
//   pivot 0: no pivoting where that is safe, as it is for strictly diagonally dominant rows, else
//   partial pivoting; 1: always pivot. AQ_NUMERIC if singular (names the matrix). x0: the inverse of
//   a matrix near a, from which a backend may start (cuda: f32 matrices of more than 128 rows); x
//   then differs in rounding only, and a poor x0 costs only time. x may lie where x0 does.
typedef struct { int32_t pivot; int32_t pad; } aq_lu_inverse_params;
// matmul(a T[B,M,K], b T[B,K,N]) -> (y T[B,M,N])    stored transposed where trans_*; y = alpha a b
typedef struct { double alpha; int32_t trans_a, trans_b; } aq_matmul_params;
// hadamard(x T[..., n F], signs T[F], odd T[m,m]?) -> (y like x)    each run of F = 2^k m values, m odd:
//   y = (x o signs) (H_{2^k} (x) odd) / sqrt(2^k), with Sylvester's H and (x) the Kronecker product;
//   inverse: its transpose, y = (x (H_{2^k} (x) odd)^T) o signs / sqrt(2^k) (also the gradient).
//   odd is given exactly where m > 1; signs are 1 or -1, and odd is orthogonal (not checked).
typedef struct { int32_t inverse, pad; } aq_hadamard_params;
// guard I32[1]? of the optimizers: nothing is changed where it is 0 (what all_finite says of a step's
//   gradients), and a margin then is NaN. schedule F64[2]? (rate, step): lr times rate instead of lr,
//   and this step instead of the parameter; so a recorded sequence of ops can be run again.
// masked_adam(guard?, schedule?, p! T[B,D,D], g T, m! T, v! T, a! T?, copy! BF16?) -> (margin T[B])
//   AdamW of p where |i-j| <= band only (cost follows the band); g is the gradient of a = gradual_mask(p).
//   Then keep_away by `floor`, and the dominance projection: where a row's sum of |off-diagonal a| exceeds
//   limit |a_ii|, its off-diagonal p shrink to meet it (limit <= 0: never). margin = 1 - max over rows of
//   off / |a_ii| as it is then. The band of a, and of copy, which is a rounded, is brought up to date.
typedef struct {
  double lr, beta1, beta2, eps, weight_decay, sf, limit, floor;
  int32_t step;  // 1, 2, ...: for the bias correction
  int32_t band;
} aq_masked_adam_params;
// adam(guard?, schedule?, {p! T, g T, m! T, v! T}) -> ()     AdamW on every entry, any shapes
typedef struct { double lr, beta1, beta2, eps, weight_decay; int32_t step, pad; } aq_adam_params;
// keep_away(p! T) -> ()                    p = sign(p) max(|p|, limit), sign(0) = 0: not near zero
typedef struct { double limit; } aq_keep_away_params;
// sign_step(guard?, schedule?, {v! T, g S}) -> ()   v = clamp(v - lr sign(g), -limit, limit), sign(0) = 0
typedef struct { double lr, limit; } aq_sign_step_params;

// ---------------------------------------------------------------- quantization (quality.md, section 0)
// r T[M]?, c T[K]? of the ops below: the matrix that is quantized is r_m x_mk c_k (as scale_weight,
//   which need not run then), an absent factor is 1. Grids, offsets and gradients belong to it.
// quant_grid(x S[M,K], clip T?, r?, c?) -> (scale T[M,G], zero T[M,G])
//   mx = max(max x, 0) f1, mn = min(min x, 0) f2 per group; f = sigmoid(clip): numel 1 -> f1 = f2 for
//   all; [2, M, G] -> own f1 (clip[0]) and f2 (clip[1]) per group; absent -> 1.
//   asymmetric: s = max((mx-mn)/(2^bits-1), floor), z = round(-mn/s)
//   symmetric:  s = max(max(mx,-mn)/(2^(bits-1)-1), floor), z = 2^(bits-1)
//   round_f16: s is rounded to float16 before z is taken.   round is half to even, everywhere.
//   z is kept within 0 .. 2^bits-1 (it can leave it by one when s was rounded).
//   rule 1, the published code's: mx = (max x) f1, mn = (min x) f2, 0 not forced into the range;
//   z = round(clamp(-mn/s, -1e4, 1e4)), not kept within the codes; symmetric: |mx|, |mn| and
//   z = 2^(bits-1) - 1. rule 0: what is above.
typedef struct {
  double floor;
  int32_t bits, group, symmetric, round_f16, rule, pad;
} aq_quant_grid_params;
// quant_operand(x S[M,K], clip T?, v T[M,K]?, r?, c?)
//     -> (scale T[M,G], zero T[M,G], y[M,K], values BF16[M,K], or [0] where values is 0)
//   scale and zero as quant_grid's, and the quantized matrix in one pass, for several products.
//   dtype I8: code - zero, for bits of at most 7, whole rows (group 0) and rule 0; a row that holds a
//   NaN has the scale NaN. Else T, BF16 or F16: (code - zero) scale.
//   values (I8, T = f32): that in BF16 as well, for the products that k runs across the rows of.
typedef struct {
  double floor;
  int32_t bits, group, symmetric, rule, dtype, values;
} aq_quant_operand_params;
// fake_quant(x T[M,K], scale T[M,G], zero T[M,G], v T[M,K]?) -> (y)
//   y = (clamp(round(x/s + v) + z, 0, 2^bits-1) - z) s;  v: learned rounding offsets, absent = 0
typedef struct { int32_t bits, group; } aq_fake_quant_params;
// fake_quant_grad(x S[M,K], scale, zero, g G[M,K], clip T?, v T[M,K]?, r?, c?)
//     -> (gx G[M,K], or [0] where need_gx is 0, gclip T like clip, else [0], gv G[M,K], or [0] without
//         v, gr T like r, else [0], gc T like c, else [0])
//   straight through every round (z's too), clamp passes inside and at its bounds, max and min pass
//   to the extreme elements (ties share equally). See docs/method.md for the formulas.
//   rule 1: the grid is quant_grid's rule 1, and z passes nothing on.
typedef struct {
  double floor;
  int32_t bits, group, symmetric, need_gx, rule, pad;
} aq_fake_quant_grad_params;
// fake_quant_gemm(a, b, a_scale?, a_zero?, b_scale?, b_zero?, bias T[N]?, b_v T like b?, b_r?, b_c?)
//     -> (c [M,N])
//   c = op(A^) op(B^) + bias;  a is stored [M,K] (trans_a 0) or [K,M] (1); b [K,N] (0) or [N,K] (1).
//   a and b are, each by itself,
//   T: fake-quantized where its grid is given (bits, group along stored rows; T then is the type of
//     the grid, and b may be BF16 or F16 with T = f32), with the offsets b_v and the factors b_r, b_c
//     of b's stored rows and columns if given (b then has a grid), while panels are packed: the
//     quantized operand never exists in memory;
//   BF16 or F16, without a grid: an operand that was rounded once for several products, read as it is
//     (where it is the type of the products; else converted);
//   T, BF16 or F16 with a scale of one number and no zero: the product is times that number (both of
//     them where both have one; before the bias and what it is added to), as fp4_operand writes them;
//   I8 with a scale of each stored row and no zero: such whole numbers times their scale, as
//     quant_operand writes them. The product of two along their rows is exact.
//   bf16 (T = f32): c is BF16. accumulate: c (then given by the caller) += ... instead of =.
//   T is f32 where no input says otherwise. A leading batch is flattened into stored rows.
typedef struct {
  int32_t trans_a, trans_b, a_bits, a_group, b_bits, b_group, accumulate, bf16;
} aq_fake_quant_gemm_params;
// quantize(x T[M,K], scale T[M,G], zero T[M,G], v T[M,K]?) -> (codes U8[M,K])
//   clamp(round(x/s + v) + z, 0, 2^bits-1)
typedef struct { int32_t bits, group; } aq_quantize_params;
// gptq(w T[O,I], h T[I,I], scale T[O,G], zero T[O,G]) -> (codes U8[O,I])
//   columns from left to right: code of w_j as in quantize, e = (w_j - (code - z) s) / U_jj, then
//   w_k -= e U_jk for k > j, in blocks of `block` columns; Ut U = (h + damping mean(diag h) I)^-1 in f64.
//   h = XtX / N of the layer's input. All of h zero: as quantize. AQ_NUMERIC if the damped h is not
//   positive definite (names the column).
typedef struct { double damping; int32_t bits, group, block, pad; } aq_gptq_params;
// dequantize(codes U8[M,K], scale T[M,G], zero T[M,G]) -> (x T[M,K])  (code - z) s
typedef struct { int32_t group, pad; } aq_dequantize_params;

// ---------------------------------------------------------------- 4-bit floats
// Element e2m1: codes 0..7 are 0 .5 1 1.5 2 3 4 6, 8..15 their negatives (8 is written for -0 and never
// made). Groups of columns share a scale s, and G = K / group; K must be a multiple of group.
//   format 0, NVFP4: group 16, s e4m3fn; format 1, MXFP4: group 32, s a power of two (e8m0).
// g T[1]: the matrix's global scale (NVFP4); absent, or not finite: 1. Always absent in MXFP4.
// clip: f = sigmoid(clip): numel 1 for all, else [M, G], one for each group; absent: f = 1.
// Of the matrix x^ = r_m x_mk c_k (r, c as above), with a = f max |x^| over the group:
//   NVFP4: s = e4m3(clamp(a / 6 g, 2^-9, 448)), nearest, ties to even; a NaN in the group: s = NaN
//   MXFP4: s = 2^(e - 2), 2^e the power of two at or below a 8/7, that is: the f32 bits of a, plus 2^21,
//     without their mantissa (f64: the same rule at its width); e - 2 is kept within -126 .. 127
//   u = x^ (g / s);  h = .5 where |u| < 2, 1 where |u| < 4, else 2
//   q = the e2m1 nearest to clamp(u + v h, -6, 6), ties to the even code; v absent = 0
// and the quantized number is q s / g. Source: compressed-tensors 0.20; docs/method.md.
// fp4_global(x S[M,K], g T[1]?, r T[M]?, c T[K]?) -> (g T[1])
//   min(g, 2688 / max |x^|), 2688 = 448 6: infinite as long as all is zero; absent g = infinity. NaN in
//   x^ or g: NaN. Matrices that share one are taken one after the other.
typedef struct { int32_t pad[2]; } aq_fp4_global_params;
// fp4_operand(x S[M,K], g T[1]?, clip T?, v T[M,K]?, r T[M]?, c T[K]?)
//     -> (scale T[M,G], factor T[1], y[M,K])     scale = s, factor = 1 / g
//   dtype T or BF16: y = q s, exactly (times factor it is the quantized number); U8: y = the codes.
typedef struct { int32_t format, dtype; } aq_fp4_operand_params;
// fp4_grad(x S[M,K], scale T[M,G], g T[1]?, grad G[M,K], clip T?, v T[M,K]?, r T[M]?, c T[K]?)
//     -> (gx G[M,K], or [0] where need_gx is 0, gclip T like clip, else [0], gv G[M,K], or [0] without
//         v, gr T like r, else [0], gc T like c, else [0])
//   straight through the roundings of q and of s (MXFP4's in log2: ds/da = s / a); g and h are constants;
//   the clamp of u + v h passes inside and at its bounds (P = 1, else 0), and that of s likewise (L):
//   to x^ P grad; to v P grad s h / g; to s' = s / g: sum over the group of grad (q - P u)
//   to a: that times L / 6 (MXFP4: times s / a, 0 where a is 0), from there with f to the elements of
//   largest magnitude with their signs (ties share equally), and max |x^| f (1 - f) to clip.
//   spends_grad: what grad holds afterwards is not looked at, so that it need not reach memory.
typedef struct { int32_t format, need_gx, spends_grad, pad; } aq_fp4_grad_params;
// fp4_values(codes U8[M,K], scale T[M,G], g T[1]?) -> (x T[M,K])      q (s / g), each rounded once
typedef struct { int32_t format, pad; } aq_fp4_values_params;

// ---------------------------------------------------------------- the block
// rms_norm(x T[M,C], w T[C], b T[C]?) -> (y T[M,C], rstd T[M])
//   rstd = 1/sqrt(mean x^2 + eps), y = x rstd w + b, absent b = 0
typedef struct { double eps; } aq_rms_norm_params;
// rms_norm_grad(x, w, rstd, g T[M,C])
//     -> (gx T[M,C], or [0] where need_gx is 0, gw T[C], gb T[C], or [0] where need_gb is 0)
typedef struct { int32_t need_gx, need_gb; } aq_rms_norm_grad_params;
// layer_norm(x T[M,C], w T[C], b T[C]) -> (y T[M,C], mean T[M], rstd T[M])
//   rstd = 1/sqrt(mean (x - mean)^2 + eps), y = (x - mean) rstd w + b
typedef struct { double eps; } aq_layer_norm_params;
// layer_norm_grad(x, w, mean, rstd, g T[M,C]) -> (gx T[M,C], gw T[C], gb T[C])
typedef struct { int32_t pad[2]; } aq_layer_norm_grad_params;
// rope(x T[M, heads*D], cos T[T, D/2], sin T[T, D/2]) -> (y)   row m is position m mod T
//   y_i = x_i c - x_{i+D/2} s, y_{i+D/2} = x_{i+D/2} c + x_i s; inverse: s -> -s (the gradient). bf16: y is BF16
typedef struct { int32_t heads, inverse, bf16, pad; } aq_rope_params;
// attention(q T[B,T,H*D], k T[B,T,Hkv*D], v T[B,T,Hkv*D], q_scale?, q_zero?, k_scale?, k_zero?, v_scale?, v_zero?)
//     -> (o T[B,T,H*D], lse T[B,H,T], kept U8[n])     causal softmax(scale q kT) v, query head h uses kv head
//   h/(H/Hkv); grids, where given, are per token and head ([B*T, H] or [B*T, Hkv]) and are applied
//   on load. lse = log sum exp of the scaled logits. No T x T matrix is kept. kept: with keep 1 what the
//   gradient would make again of q, k and v, the backend's own; n is their 16-bit size, in whole tiles; else 0.
typedef struct { double scale; int32_t heads, kv_heads, bits, keep; } aq_attention_params;
// attention_grad(q, k, v, q_scale?, q_zero?, k_scale?, k_zero?, v_scale?, v_zero?, o, lse, go T[B,T,H*D], kept?)
//     -> (gq T like q, gk, gv)             with respect to the (quantized) values that were used
typedef struct { double scale; int32_t heads, kv_heads, bits, pad; } aq_attention_grad_params;
// silu_mul(gate T, up T) -> (y)            y = gate sigmoid(gate) up
typedef struct { int32_t pad[2]; } aq_silu_mul_params;
// silu_mul_grad(gate T, up T, g T) -> (ggate, gup)          both BF16 where bf16 (T = f32)
typedef struct { int32_t bf16, pad; } aq_silu_mul_grad_params;
// relu(x T) -> (y)                         y = max(x, 0)
typedef struct { int32_t pad[2]; } aq_relu_params;
// relu_grad(y T (the forward output), g T) -> (gx)          gx = g where y > 0, else 0
typedef struct { int32_t pad[2]; } aq_relu_grad_params;

// ---------------------------------------------------------------- the block, made for products
#include "native/abi/operand_params.h"

// ---------------------------------------------------------------- loss and evaluation
// mse(y T, t T, t2 T?) -> (loss T[1])      mean (y - t)^2, plus mean (y - t2)^2 if given; summed in f64
//   over fixed chunks
typedef struct { int32_t pad[2]; } aq_mse_params;
// mse_grad(y T, t T, g T[1], t2 T?) -> (gy T)    2 ((y - t) + (y - t2)) g / numel, absent: without it
typedef struct { int32_t pad[2]; } aq_mse_grad_params;
// kl_div(logits T[M,V], targets T[M,V]) -> (loss T[1])
//   mean over rows of KL(softmax(targets) || softmax(logits)); targets are the teacher's logits
typedef struct { int32_t pad[2]; } aq_kl_div_params;
// kl_div_grad(logits T[M,V], targets T[M,V], g T[1]) -> (glogits T[M,V])
//   (softmax(logits) - softmax(targets)) g / M
typedef struct { int32_t pad[2]; } aq_kl_div_grad_params;
// sq_diff(a T, b T?) -> (y F64[1])         sum (a - b)^2, summed in f64; absent b counts as zero
typedef struct { int32_t pad[2]; } aq_sq_diff_params;
// cross_entropy(logits T[M,V], ids I32[M]) -> (loss T[M])   -log softmax at ids; AQ_ARG if an id >= V
typedef struct { int32_t pad[2]; } aq_cross_entropy_params;
// gather_rows(table F64|F32|BF16|F16 [V,C], ids I32[M]) -> (y dtype [M,C])   AQ_ARG if an id is outside
typedef struct { int32_t dtype, pad; } aq_gather_rows_params;
// channel_stats(x T[M,C]) -> (abs_max T[C], max T[C], min T[C])
typedef struct { int32_t pad[2]; } aq_channel_stats_params;
// all_finite({x S}) -> (flag I32[1])       1 if there is no NaN or infinity in any of them
typedef struct { int32_t pad[2]; } aq_all_finite_params;
// draw_tokens(logits T[M,V], draws F64[M,2]) -> (ids I32[M])
//   An id of each row. With its draw (t, u), u in [0, 1): the first whose weight e^((l - max l) / t), added to
//   those before it, is above u times the sum of all; at t = 0 the first of the largest. What is no number
//   has no weight; -1 where nothing is one.
typedef struct { int32_t pad[2]; } aq_draw_tokens_params;

// ---------------------------------------------------------------- packed inference
// cached_attention(q T[M,H*D], k T[M,Hkv*D]?, v T like k?, q_scale?, q_zero?, k_scale?, k_zero?, v_scale?, v_zero?,
//     k_cache! K[S,P,Hkv*D], v_cache! K like k_cache, k_grid! T[S,P,Hkv,2]?, v_grid! like k_grid?,
//     slots I32[M], positions I32[M], cos T[M,D/2]?, sin like cos?) -> (o T[M,H*D])
//   Attention of tokens that come one by one or in pieces: k and v of token m are written to place
//   positions[m] of slot slots[m], all of them, and then q of token m sees places 0 .. positions[m] of
//   its slot; heads, scale and grids as in attention. A call's tokens may be of one slot or of many; two
//   must not have the same place. AQ_ARG where a slot or a position is outside of the caches.
//   K: T, or BF16 or F16 with T = f32; or codes of at most 4 bits, U8 [S,P,Hkv*ceil(D/2)] with
//   channel 2 i of a head in the low half of its byte i: then k and v have grids, and k_grid, v_grid
//   hold their (scale, zero).
//   k and v absent: they stand behind q, T[M,(H+2*Hkv)*D], all without grids. cos, sin: q and k, without
//   grids, are turned first, as by rope. apart 1: no two tokens are of one slot, which saves a pass.
//   round: o is rounded to BF16 or F16 (T = f32), 0: it is not.
typedef struct {
  double scale;
  int32_t heads, kv_heads, bits, apart, round, pad;
} aq_cached_attention_params;
// int4_pack(codes U8[O,I], scale T[O,G], zero T[O,G]) -> (packed U8[ceil(O/16), ceil(I/128), 1024],
//     packed_scale F16[ceil(O/16), G, 16], packed_zero U8[ceil(O/16), G, 16])
//   Puts exported codes of 1 to 4 bits, once at load, into the order in which the matrix units read
//   them; scales are rounded to f16 (exported ones are f16 already), zeros are whole numbers 0 .. 15.
//   Codes and zeros outside 0 .. 15 are brought to the nearest. group: 0 (whole row), 32, 64 or a
//   multiple of 128. The three outputs are opaque: only int4_matmul of the same version reads them.
//   Order (an op's own affair): tiles of 16 rows x 128 columns, 1024 bytes. Byte 512 c + 64 g + b of a
//   tile, b = 16 t + 4 k + i, holds rows g (low half) and g + 8 (high half) of the tile's column
//   64 c + 16 k + 2 t + (0, 8, 1, 9)[i]. Scale and zero: row g at 2 g, row g + 8 at 2 g + 1.
typedef struct { int32_t group, pad; } aq_int4_pack_params;
// int4_matmul(x X[M,I], packed, packed_scale, packed_zero, bias X[outputs]?, x_scale S[M]?, x_zero S[M]?)
//     -> (y X[M,outputs])                  y = x^ W^T + bias, W = (code - zero) scale
//   X = f64, f32, bf16 or f16. x^ = fake_quant(x) with one grid per row where x_scale and x_zero are
//   given (x_bits 1 .. 8; S = X for f32 and f64, else f32), else x. Products follow the queue's
//   precision for f32; bf16 and f16 products are of that type with f32 sums; with a grid the products
//   are of integers and exact. group as in int4_pack. wide 1: bias and y are F32 where X is BF16 or F16.
typedef struct { int32_t outputs, group, x_bits, wide; } aq_int4_matmul_params;
// norm_rounded(x T[M,C], w T[C], b T[C]?) -> (y Y[M,C])
//   rms_norm, or layer_norm where centred, whose result only products read. Y = T, or BF16 or F16 of T =
//   f32: what `round` says, 0 for T.
typedef struct { double eps; int32_t centred, round; } aq_norm_rounded_params;
// silu_mul_joined(x T[M,2*F]) -> (y Y[M,F])    silu_mul of the halves of each row; Y as in norm_rounded
typedef struct { int32_t round, pad; } aq_silu_mul_joined_params;
// int8_pack(codes U8[O,I], scale T[O,G], zero T[O,G]) -> (packed U8[ceil(O/16), ceil(I/64), 1024],
//     packed_scale F16[ceil(O/16), G, 16], packed_zero U8 like packed_scale)
//   The same for codes of at most 8 bits and zeros 0 .. 255, for int8_matmul. Order: tiles of 16 rows x
//   64 columns; byte 64 r + c of a tile holds row r's column c, and scale and zero of row r are at r.
typedef struct { int32_t group, pad; } aq_int8_pack_params;
// int8_matmul(x X[M,I], packed, packed_scale, packed_zero, bias X[outputs]?, x_scale S[M]?, x_zero S[M]?)
//     -> (y X[M,outputs])                  as int4_matmul
typedef struct { int32_t outputs, group, x_bits, pad; } aq_int8_matmul_params;
// fp4_pack(codes U8[O,I], scale T[O,G]) -> (packed U8[ceil(O/16), ceil(I/128), 1024],
//     packed_scale U8[ceil(O/16), G, 16])
//   e2m1 codes in int4_pack's order, and the bytes of their scales (format 0: e4m3fn, 1: e8m0; group 16
//   and 32) in that of its scales. Opaque like int4_pack's.
typedef struct { int32_t format, pad; } aq_fp4_pack_params;
// fp4_matmul(x X[M,I], packed, packed_scale, factor S[1]?, bias X[outputs]?, x_global S[1]?)
//     -> (y X[M,outputs])                  y = factor x^ W^T + bias, W = q s; absent factor = 1
//   X = f64, f32, bf16 or f16; S = X for f32 and f64, else f32. tokens 1: x^ = x quantized by the same
//   format with the global scale x_global (fp4_operand without clip), 0: x^ = x. Products follow the
//   queue's precision for f32; bf16 and f16 products are of that type with f32 sums. q s is exact in
//   bf16; in f16 products MXFP4's scales may not fit, and then products are in bf16.
typedef struct { int32_t outputs, format, tokens, pad; } aq_fp4_matmul_params;

#ifdef __cplusplus
}
#endif
