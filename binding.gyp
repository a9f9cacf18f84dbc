# The CPU addon: engine (native/core), CPU backend (native/cpu) and N-API bindings (native/napi).
# The CUDA addon is built apart, by CMakeLists.txt.
{
  "variables": {
    "checkout": "<!(node -p \"fs.existsSync('tsconfig.json') ? 1 : 0\")",
  },
  "target_defaults": {
    # There is no Debug flavour.
    "default_configuration": "Release",
  },
  "targets": [
    {
      "target_name": "aq_native",
      # Every file of these folders, so that a new kernel or op needs no change here.
      "sources": [
        "<!@(node scripts/addon-files.mjs)",
      ],
      "include_dirs": [
        ".",
        "<!(node -p \"require('node-addon-api').include_dir\")",
      ],
      "defines": [
        "NAPI_VERSION=9",
        "NODE_ADDON_API_CPP_EXCEPTIONS",
        "NODE_ADDON_API_DISABLE_DEPRECATED",
      ],
      # Node's common.gypi sets what its own code needs; ours is C++20 with exceptions and RTTI.
      "cflags_cc!": ["-fno-exceptions", "-fno-rtti", "-std=gnu++17"],
      "cflags!": ["-O2", "-O3", "-fno-omit-frame-pointer", "-Wno-unused-parameter"],
      "cflags_cc": [
        "-std=gnu++20",
        "-O3",
        # No contraction of a*b+c into one rounding: every SIMD level must give the same bits.
        "-ffp-contract=off",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-fexceptions",
        "-frtti",
        "-fvisibility=hidden",
        "-fvisibility-inlines-hidden",
        "-Wall",
        "-Wextra",
      ],
      "conditions": [
        # In a checkout only: a user's newer compiler may know warnings that ours does not.
        [
          "checkout==1",
          {
            "cflags_cc": ["-Werror"],
            "xcode_settings": {"GCC_TREAT_WARNINGS_AS_ERRORS": "YES"},
          },
        ],
        [
          "OS=='linux'",
          {
            # A static C++ runtime: the binary must load on systems older than the compiler. Its
            # symbols bind inside the addon, and not to those of the node program.
            # nodelete: worker threads of the engine outlive the unload of the environment that
            # loaded the addon (a node worker's exit).
            "ldflags": [
              "-static-libstdc++",
              "-static-libgcc",
              "-Wl,-z,nodelete",
              "-Wl,--exclude-libs,ALL",
              "-Wl,-Bsymbolic",
            ],
          },
        ],
        [
          "OS=='mac'",
          {
            "xcode_settings": {
              "CLANG_CXX_LANGUAGE_STANDARD": "gnu++20",
              "CLANG_CXX_LIBRARY": "libc++",
              "GCC_ENABLE_CPP_EXCEPTIONS": "YES",
              "GCC_ENABLE_CPP_RTTI": "YES",
              "GCC_OPTIMIZATION_LEVEL": "3",
              "GCC_SYMBOLS_PRIVATE_EXTERN": "YES",
              "MACOSX_DEPLOYMENT_TARGET": "11.0",
              "OTHER_CPLUSPLUSFLAGS": [
                "-ffp-contract=off",
                "-fno-math-errno",
                "-fno-trapping-math",
                "-Wall",
                "-Wextra",
              ],
            },
          },
        ],
        [
          "OS=='win'",
          {
            # The kernels are written with the vector extensions of GCC and clang; Visual Studio brings
            # a clang (component "C++ Clang tools for Windows").
            "msbuild_toolset": "ClangCL",
            "msvs_settings": {
              "VCCLCompilerTool": {
                "ExceptionHandling": "1",
                "RuntimeTypeInfo": "true",
                "AdditionalOptions": [
                  "/std:c++20",
                  "/clang:-O3",
                  "/clang:-ffp-contract=off",
                  "/clang:-fno-math-errno",
                  "/clang:-fno-trapping-math",
                ],
              },
            },
          },
        ],
      ],
    },
  ],
}
