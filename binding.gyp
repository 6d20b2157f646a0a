# The installer's build: `npm ci` runs it through node-gyp and needs nothing but a C++20 compiler; nvcc where CUDA is wanted.
{
  "variables": { "with_cuda%": "<!(node native/sources.cjs withCuda)" },
  "targets": [{
    "target_name": "selscan",
    "sources": ["<!@(node native/sources.cjs addon)", "<!@(node native/sources.cjs kernels)"],
    "include_dirs": ["<!@(node native/sources.cjs includes)", "<!(node -p \"require('node-addon-api').include_dir\")"],
    "defines": ["<!@(node native/sources.cjs defines)"],
    "cflags!": ["-fno-exceptions"],
    "cflags_cc!": ["-fno-exceptions", "-fno-rtti", "-std=gnu++17", "-std=gnu++20"],
    "cflags_cc": ["<!@(node native/sources.cjs cxxflags)"],
    "ldflags": ["<!@(node native/sources.cjs ldflags)"],
    "conditions": [["with_cuda==1", {
      "sources": ["<!@(node native/sources.cjs cuda)"],
      "rules": [{
        "rule_name": "nvcc",
        "extension": "cu",
        "process_outputs_as_sources": 1,
        # gyp follows no includes of .cu files: all headers that they may include are named.
        "inputs": ["<!@(node native/sources.cjs headers)"],
        "outputs": ["<(INTERMEDIATE_DIR)/<(RULE_INPUT_DIRNAME)/<(RULE_INPUT_ROOT).cu.o"],
        "action": [
          "<!@(node native/sources.cjs nvcc)", "-c", "<(RULE_INPUT_PATH)", "-o", "<@(_outputs)", "-Inative",
          "<!@(node native/sources.cjs architectures)", "<!@(node native/sources.cjs cuflags)"
        ]
      }],
      "libraries": ["<!@(node native/sources.cjs cudaLibraries)"]
    }]],
    "xcode_settings": {
      "GCC_ENABLE_CPP_EXCEPTIONS": "YES",
      "GCC_ENABLE_CPP_RTTI": "YES",
      "CLANG_CXX_LANGUAGE_STANDARD": "c++20",
      "MACOSX_DEPLOYMENT_TARGET": "13.3"
    }
  }]
}
