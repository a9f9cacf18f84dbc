// table.h: the level's kernels by op name. Every op of params.h has a row here; backend.cc reaches
// them through kernelRows, the only name of a level that has external linkage.

#define AQ_ROW_AS(op, kernel) \
  { #op, sizeof(aq_##op##_params), kernel }
#define AQ_ROW(op) AQ_ROW_AS(op, op)
// Of ops that take short numbers.
#define AQ_SHORT_ROW(op) AQ_ROW_AS(op, widened<op>)
static const aq_kernel_row kKernelRows[] = {
    AQ_ROW(fill),
    AQ_ROW(cast),
    AQ_ROW(add),
    AQ_ROW(axpy),
    AQ_ROW(mul),
    AQ_ROW(exp),
    AQ_SHORT_ROW(scale_weight),
    AQ_SHORT_ROW(scale_weight_grad),
    AQ_SHORT_ROW(head_matmul),
    AQ_SHORT_ROW(head_matmul_grad),
    AQ_SHORT_ROW(rotate_pairs),
    AQ_SHORT_ROW(rotate_pairs_grad),
    AQ_ROW(gradual_mask),
    AQ_ROW(lu_inverse),
    AQ_ROW(matmul),
    AQ_ROW(hadamard),
    AQ_ROW(masked_adam),
    AQ_ROW(adam),
    AQ_ROW(keep_away),
    AQ_ROW(sign_step),
    AQ_SHORT_ROW(quant_grid),
    AQ_ROW(fake_quant),
    AQ_SHORT_ROW(fake_quant_grad),
    AQ_ROW_AS(fake_quant_gemm, operandGemm),
    AQ_ROW_AS(quant_operand, widenedOperand),
    AQ_ROW(quantize),
    AQ_ROW(gptq),
    AQ_ROW(dequantize),
    AQ_SHORT_ROW(fp4_global),
    AQ_ROW(fp4_operand),
    AQ_SHORT_ROW(fp4_grad),
    AQ_ROW(fp4_values),
    AQ_ROW(rms_norm),
    AQ_ROW(rms_norm_grad),
    AQ_ROW(layer_norm),
    AQ_ROW(layer_norm_grad),
    AQ_SHORT_ROW(rope),
    AQ_ROW(attention),
    AQ_ROW(attention_grad),
    AQ_ROW(silu_mul),
    AQ_SHORT_ROW(silu_mul_grad),
    AQ_ROW(relu),
    AQ_ROW(relu_grad),
    AQ_ROW(rms_norm_operand),
    AQ_ROW(rms_norm_operand_grad),
    AQ_ROW(layer_norm_operand),
    AQ_ROW(layer_norm_operand_grad),
    AQ_ROW(silu_mul_operand),
    AQ_ROW(silu_mul_operand_grad),
    AQ_ROW(relu_operand),
    AQ_ROW(relu_operand_grad),
    AQ_ROW(attention_operand),
    AQ_ROW(attention_operand_grad),
    AQ_ROW(rope_grid),
    AQ_ROW(rope_grid_grad),
    AQ_ROW(mse),
    AQ_ROW(mse_grad),
    AQ_ROW(kl_div),
    AQ_ROW(kl_div_grad),
    AQ_ROW(sq_diff),
    AQ_ROW(cross_entropy),
    AQ_ROW(gather_rows),
    AQ_ROW(channel_stats),
    AQ_ROW(all_finite),
    AQ_ROW(cached_attention),
    AQ_ROW(norm_rounded),
    AQ_ROW(silu_mul_joined),
    AQ_ROW(int4_pack),
    AQ_ROW(int4_matmul),
    AQ_ROW(int8_pack),
    AQ_ROW(int8_matmul),
    AQ_ROW(fp4_pack),
    AQ_ROW(fp4_matmul),
};
#undef AQ_ROW
#undef AQ_SHORT_ROW
#undef AQ_ROW_AS

const aq_kernel_row* kernelRows(uint32_t* count) {
  *count = uint32_t(sizeof kKernelRows / sizeof kKernelRows[0]);
  return kKernelRows;
}
