// op.h: what an op is (OpSpec), the registry of all ops, and invoke(), the one way to run one.
//
// An op's file under core/ops/ says names, parameters and shape rules; it holds no arithmetic. The
// field table maps the parameters, by name, to the POD struct of native/abi/params.h, so that a new
// op needs no code in native/napi.
#pragma once
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "native/abi/params.h"
#include "native/core/tensor.h"

namespace aq {

enum class FieldKind { kInt, kFloat };

struct Field {
  const char* name;
  FieldKind kind;
  uint32_t offset;
};

#define AQ_INT(Struct, name) \
  aq::Field { #name, aq::FieldKind::kInt, uint32_t(offsetof(Struct, name)) }
#define AQ_FLOAT(Struct, name) \
  aq::Field { #name, aq::FieldKind::kFloat, uint32_t(offsetof(Struct, name)) }

enum InputFlags : uint8_t { kPlain = 0, kOptional = 1, kMutable = 2 };

struct InputSpec {
  const char* name;
  uint8_t flags = kPlain;
};

struct OutputSpec {
  int32_t dtype;
  Shape shape;
};

class Infer;

struct OpSpec {
  const char* name;
  std::vector<InputSpec> inputs;
  std::vector<const char*> outputs;
  std::vector<Field> fields;
  uint32_t paramsSize;
  void (*infer)(Infer&);
  // The inputs from here on may be given again and again, as a group; -1: none may.
  int repeatFrom = -1;
};

// What a shape rule sees: the inputs, the parameters; it checks them and says the outputs.
class Infer {
 public:
  Infer(const OpSpec& spec, std::span<const Tensor* const> inputs, const void* params)
      : spec_(spec), inputs_(inputs), params_(params) {}

  int count() const { return int(inputs_.size()); }  // of inputs, absent ones included
  bool has(int i) const { return inputs_[size_t(i)] != nullptr; }
  const Shape& shape(int i) const { return inputs_[size_t(i)]->shape; }
  int32_t dtype(int i) const { return inputs_[size_t(i)]->dtype; }
  int64_t numel(int i) const { return inputs_[size_t(i)]->numel(); }
  int64_t rows(int i) const { return rowCount(shape(i)); }
  int64_t cols(int i) const { return lastDim(shape(i)); }
  template <class P>
  const P& params() const {
    return *static_cast<const P*>(params_);
  }

  // f32 or f64, the same for all the given inputs that are present; returns it.
  int32_t compute(std::initializer_list<int> which) const;
  // The present ones of these inputs are of this type.
  void compute(int32_t dtype, std::initializer_list<int> which) const;
  // Input s (an S of params.h): of type `compute`, or BF16 or F16 where that is f32.
  void stored(int s, int32_t compute) const;
  // Input s alone says T: f64, else f32.
  int32_t computeOf(int s) const;
  // Input g is the gradient (G of params.h) of what input s is; returns its type.
  int32_t gradient(int g, int s) const;
  const char* name(int i) const;  // of an input
  // AQ_SHAPE naming both inputs and both shapes.
  void same(int a, int b) const;
  void elements(int i, int64_t want, const char* meaning) const;
  void rank(int i, int want) const;
  // AQ_ARG naming the parameter, its range and its value.
  void range(const char* param, double value, double low, double high) const;
  [[noreturn]] __attribute__((format(printf, 3, 4))) void fail(int32_t code, const char* format,
                                                               ...) const;

  void output(int32_t dtype, Shape shape) { outputs.push_back({dtype, std::move(shape)}); }
  void outputLike(int i) { outputs.push_back({dtype(i), shape(i)}); }

  std::vector<OutputSpec> outputs;

 private:
  const OpSpec& spec_;
  std::span<const Tensor* const> inputs_;
  const void* params_;
};

const std::vector<OpSpec>& opRegistry();
int findOp(const char* name);  // index, or -1

// Checks, allocates (unless `given` outputs are passed, which then must fit) and runs the op.
// `values` are the parameters in the order of the field table.
std::vector<Tensor> invoke(size_t op, std::span<const Tensor* const> inputs,
                           std::span<const double> values, std::span<const Tensor> given);

// The families of ops, one function a file under core/ops/.
void addElementwiseOps(std::vector<OpSpec>& ops);
void addFoldOps(std::vector<OpSpec>& ops);
void addLinalgOps(std::vector<OpSpec>& ops);
void addOptimizerOps(std::vector<OpSpec>& ops);
void addQuantizeOps(std::vector<OpSpec>& ops);
void addFp4Ops(std::vector<OpSpec>& ops);
void addBlockOps(std::vector<OpSpec>& ops);
void addBlockOperandOps(std::vector<OpSpec>& ops);
void addBlockFp4Ops(std::vector<OpSpec>& ops);
void addEvaluationOps(std::vector<OpSpec>& ops);
void addPackedOps(std::vector<OpSpec>& ops);

}  // namespace aq
