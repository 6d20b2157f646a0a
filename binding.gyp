# The installer's build: `npm ci` runs it through node-gyp and needs nothing but a C++20 compiler.
{
  "targets": [{
    "target_name": "selscan",
    "sources": ["<!@(node native/sources.cjs addon)", "<!@(node native/sources.cjs kernels)"],
    "include_dirs": ["<!@(node native/sources.cjs includes)", "<!(node -p \"require('node-addon-api').include_dir\")"],
    "defines": ["<!@(node native/sources.cjs defines)"],
    "cflags!": ["-fno-exceptions"],
    "cflags_cc!": ["-fno-exceptions", "-fno-rtti", "-std=gnu++17", "-std=gnu++20"],
    "cflags_cc": ["<!@(node native/sources.cjs cxxflags)"],
    "ldflags": ["<!@(node native/sources.cjs ldflags)"],
    "xcode_settings": {
      "GCC_ENABLE_CPP_EXCEPTIONS": "YES",
      "GCC_ENABLE_CPP_RTTI": "YES",
      "CLANG_CXX_LANGUAGE_STANDARD": "c++20",
      "MACOSX_DEPLOYMENT_TARGET": "13.3"
    }
  }]
}
