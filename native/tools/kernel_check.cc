// kernel_check.cc: runs kernels of the CUDA backend without Node.js and compares them with those of
// the CPU: a small process for ncu and compute-sanitizer. npm run build:kernel-check builds it.
//
//   kernel_check [options] [op...]    every op, or the named ones, at small sizes
//     --list            the ops, with their small and real sizes
//     --real            at the sizes of real models
//     --sizes "M=2 C=8" at these sizes (one op)
//     --time            times instead: microseconds, GB/s, share of a copy's rate; implies --real
//     --f32, --f64      one type only (--real and --time take f32)
//     --precision P     of f32 products: f32 (default), bf16, f16; loosens the comparison
//     --device NAME     default cuda:0; cpu works too, and then tests the cases alone
//     --alone           only on the device, nothing is compared: for profilers
//
// Each kernel runs twice, the second time into outputs full of NaN, and once recorded: all runs must
// give the same bytes, and outputs and written inputs must be close to the CPU's. Every op of the
// registry must have a case, else the check fails. Exit status: 0 all passed, 1 not, 2 wrong usage.
//
// Under compute-sanitizer go op by op with --alone, several processes side by side: racecheck takes
// long otherwise. initcheck does not see what kernels of cuBLASLt write, and calls their results
// unwritten: set AQ_CUBLASLT=0 for it.
#include <cstdio>
#include <cstdlib>

#include "native/cpu/backend.h"
#include "native/tools/kernel_cases_block.h"
#include "native/tools/kernel_cases_block_fp4.h"
#include "native/tools/kernel_cases_fp4.h"
#include "native/tools/kernel_cases_heads.h"
#include "native/tools/kernel_cases_quantize.h"
#include "native/tools/kernel_cases_weight.h"
#include "native/tools/kernel_compare.h"
#include "native/tools/kernel_sample.h"
#include "native/tools/kernel_time.h"

namespace aq::cuda {
const aq_backend* backend();
}

namespace aq::tools {

namespace {

struct Options {
  bool list = false, real = false, time = false, alone = false;
  bool f32 = true, f64 = true;
  std::string sizes, precision, device = "cuda:0";
  std::vector<std::string> ops;
};

std::vector<KernelCase> allCases() {
  std::vector<KernelCase> cases = blockCases();
  cases.insert(cases.end(), headCases().begin(), headCases().end());
  cases.insert(cases.end(), weightCases().begin(), weightCases().end());
  cases.insert(cases.end(), quantizeCases().begin(), quantizeCases().end());
  cases.insert(cases.end(), fp4Cases().begin(), fp4Cases().end());
  cases.insert(cases.end(), blockFp4Cases().begin(), blockFp4Cases().end());
  return cases;
}

// Ops without a case and cases without an op, each reported.
int countGaps(const std::vector<KernelCase>& cases) {
  int gaps = 0;
  for (const OpSpec& spec : opRegistry()) {
    bool isCovered = false;
    for (const KernelCase& c : cases) isCovered |= std::strcmp(c.op, spec.name) == 0;
    if (isCovered) continue;
    std::printf("%s has no case in native/tools/kernel_cases_*.h\n", spec.name);
    gaps++;
  }
  for (const KernelCase& c : cases) {
    if (findOp(c.op) >= 0) continue;
    std::printf("there is a case of %s, which is no op\n", c.op);
    gaps++;
  }
  return gaps;
}

class Runner {
 public:
  explicit Runner(const Options& options)
      : options_(options), cpu_(Queue::open("cpu")), device_(Queue::open(options.device)) {
    const aq_device_info info = device_->info();
    std::printf("%s: %s, %s\n", options.device.c_str(), info.name, info.detail);
    if (!options.precision.empty()) device_->setOption("precision", options.precision);
    if (!options.time) return;
    rate_ = copyRate(device_);
    std::printf("copy: %.0f GB/s read and written\n", rate_ / 1e9);
    std::printf("%-18s %-44s %11s %8s %7s\n", "op", "sizes", "us", "GB/s", "share");
  }

  void run(const KernelCase& c) {
    const bool isReal = options_.real || options_.time;
    std::vector<const char*> sizes = isReal ? c.real : c.small;
    if (!options_.sizes.empty()) sizes = {options_.sizes.c_str()};
    for (const char* text : sizes) {
      for (const int32_t dtype : {AQ_F32, AQ_F64}) {
        if (dtype == AQ_F32 ? !options_.f32 : !options_.f64) continue;
        if (dtype == AQ_F64 && isReal && options_.f32) continue;
        try {
          runOne(c, text, dtype);
        } catch (const Error& error) {
          failures_++;
          std::printf("FAILED %s %s %s: %s\n", c.op, dtypeName(dtype), text, error.message.c_str());
        }
        std::fflush(stdout);
      }
    }
  }

  int finish() const {
    if (!options_.time) std::printf("%d runs, %d failed\n", runs_, failures_);
    return failures_;
  }

 private:
  void runOne(const KernelCase& c, const char* text, int32_t dtype) {
    runs_++;
    const Sizes sizes(text);
    Maker maker(cpu_, dtype, sizes);
    c.make(maker);
    if (options_.time) return time(c, text, maker.sample);
    if (options_.alone) {
      call(c.op, copyTo(device_, maker.sample));
      device_->sync();
      return;
    }
    const bool isLow = options_.precision == "bf16" || options_.precision == "f16";
    const Verdict verdict = compare(c, maker.sample, device_, cpu_, isLow);
    const bool isClose = verdict.distance <= verdict.allowed;
    if (isClose && verdict.isRepeatable) return;
    failures_++;
    std::printf("FAILED %s %s %s:", c.op, dtypeName(dtype), text);
    if (!isClose) std::printf(" off by %.3g, %.3g allowed", verdict.distance, verdict.allowed);
    if (!verdict.isRepeatable) std::printf(" runs differ");
    std::printf("\n");
  }

  void time(const KernelCase& c, const char* text, const Sample& sample) {
    const Timing timing = timeKernel(c.op, device_, sample);
    const double reached = double(timing.bytes) / timing.seconds;
    std::printf("%-18s %-44s %11.2f %8.0f %6.1f%%%s\n", c.op, text, timing.seconds * 1e6,
                reached / 1e9, 100 * reached / rate_, timing.isCaptured ? "" : " with launches");
  }

  const Options& options_;
  std::shared_ptr<Queue> cpu_, device_;
  double rate_ = 1;
  int runs_ = 0, failures_ = 0;
};

[[noreturn]] void usage(const char* what, const char* which) {
  std::fprintf(stderr, "kernel_check: %s '%s'; the head of kernel_check.cc explains the options\n",
               what, which);
  std::exit(2);
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; i++) {
    const std::string word = argv[i];
    const auto value = [&]() -> std::string {
      if (i + 1 == argc) usage("a value is missing after", argv[i]);
      return argv[++i];
    };
    if (word == "--list") {
      options.list = true;
    } else if (word == "--real") {
      options.real = true;
    } else if (word == "--time") {
      options.time = true;
    } else if (word == "--alone") {
      options.alone = true;
    } else if (word == "--f32") {
      options.f64 = false;
    } else if (word == "--f64") {
      options.f32 = false;
    } else if (word == "--sizes") {
      options.sizes = value();
    } else if (word == "--precision") {
      options.precision = value();
    } else if (word == "--device") {
      options.device = value();
    } else if (word.starts_with("-")) {
      usage("there is no option", argv[i]);
    } else if (findOp(argv[i]) < 0) {
      usage("there is no op", argv[i]);
    } else {
      options.ops.push_back(word);
    }
  }
  if (!options.sizes.empty() && options.ops.size() != 1) {
    usage("one op must be named for the sizes", options.sizes.c_str());
  }
  return options;
}

void list(const std::vector<KernelCase>& cases) {
  for (const KernelCase& c : cases) {
    std::printf("%s\n", c.op);
    for (const char* text : c.small) std::printf("    %s\n", text);
    for (const char* text : c.real) std::printf("    %s (real)\n", text);
  }
}

int runAll(int argc, char** argv) {
  const Options options = parse(argc, argv);
  const std::vector<KernelCase> cases = allCases();
  const int gaps = countGaps(cases);
  if (options.list) {
    list(cases);
    return gaps ? 1 : 0;
  }
  registerBackend(aq_cpu_backend());
  if (options.device != "cpu") registerBackend(cuda::backend());
  Runner runner(options);
  for (const KernelCase& c : cases) {
    bool isWanted = options.ops.empty();
    for (const std::string& op : options.ops) isWanted |= op == c.op;
    if (isWanted) runner.run(c);
  }
  return runner.finish() + gaps ? 1 : 0;
}

}  // namespace

}  // namespace aq::tools

int main(int argc, char** argv) {
  try {
    return aq::tools::runAll(argc, argv);
  } catch (const aq::Error& error) {
    std::fprintf(stderr, "kernel_check: %s\n", error.message.c_str());
    return 1;
  }
}
