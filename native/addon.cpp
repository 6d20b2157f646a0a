// The border: plain functions over numeric handles, no mathematics. lib/native.ts is its only caller and its documentation.
// Every argument is checked here for well-formedness, whatever TypeScript checked before.
#include <algorithm>

#include "cpu/isa.h"
#include "cpu/threads.h"
#include "environment.h"

namespace selscan {
namespace {

Environment& environment(const Napi::CallbackInfo& info) { return *info.Env().GetInstanceData<Environment>(); }

[[noreturn]] void refuse(const Napi::CallbackInfo& info, const char* code, const std::string& message) {
  auto error = Napi::Error::New(info.Env(), message);
  error.Set("code", code);
  throw error;
}

double number(const Napi::CallbackInfo& info, size_t i, double low, double high) {
  if (!info[i].IsNumber()) refuse(info, "BAD_INPUT", "argument " + std::to_string(i) + ": a number is expected");
  const double value = info[i].As<Napi::Number>().DoubleValue();
  if (!(value >= low && value <= high) || value != std::floor(value))
    refuse(info, "BAD_INPUT", "argument " + std::to_string(i) + ": a whole number within its range is expected");
  return value;
}

std::string string(const Napi::CallbackInfo& info, size_t i) {
  if (!info[i].IsString()) refuse(info, "BAD_INPUT", "argument " + std::to_string(i) + ": a string is expected");
  return info[i].As<Napi::String>().Utf8Value();
}

// The bytes of any view of a plain ArrayBuffer, copied: the caller may change them as soon as the call returns. The buffer is
// asked of the engine, never of the view's properties, which a script can redefine.
std::vector<std::byte> bytesOf(const Napi::CallbackInfo& info, const Napi::Value& value) {
  const Napi::Env env = info.Env();
  void* data = nullptr;
  napi_value rawBuffer = nullptr;
  size_t length = 0, offset = 0, capacity = 0;
  if (value.IsTypedArray()) {
    napi_typedarray_type type;
    size_t elements = 0;
    napi_get_typedarray_info(env, value, &type, &elements, nullptr, &rawBuffer, &offset);
    length = elements * value.As<Napi::TypedArray>().ElementSize();
  } else if (value.IsDataView()) {
    napi_get_dataview_info(env, value, &length, nullptr, &rawBuffer, &offset);
  } else {
    refuse(info, "BAD_INPUT", "a typed array is expected");
  }
  const Napi::Value buffer(env, rawBuffer);
  if (!buffer.IsArrayBuffer()) refuse(info, "BAD_INPUT", "a typed array over a plain ArrayBuffer is expected");
  napi_get_arraybuffer_info(env, rawBuffer, &data, &capacity);
  if (length == 0 || data == nullptr) return {};
  if (offset > capacity || length > capacity - offset) refuse(info, "BAD_INPUT", "a typed array inside its buffer is expected");
  const auto* begin = static_cast<const std::byte*>(data) + offset;
  return {begin, begin + length};
}

template <class T>
std::shared_ptr<T> find(const Napi::CallbackInfo& info, std::map<Handle, std::shared_ptr<T>>& map, const char* what) {
  const auto at = map.find(static_cast<Handle>(number(info, 0, 0, 4294967295.0)));
  if (at == map.end()) refuse(info, "DISPOSED", std::string(what) + ": has been disposed, or never was");
  return at->second;
}

Napi::Value toBytes(Napi::Env env, const std::vector<std::byte>& bytes) {
  auto buffer = Napi::ArrayBuffer::New(env, bytes.size());
  if (!bytes.empty()) std::memcpy(buffer.Data(), bytes.data(), bytes.size());
  return Napi::Uint8Array::New(env, bytes.size(), buffer, 0);
}

Napi::Object described(Napi::Env env, const std::string& name, Device& device) {
  auto entry = Napi::Object::New(env);
  entry.Set("name", name);
  entry.Set("description", device.describe());
  if (name == "cpu") {
    entry.Set("instructionSet", cpu::name(cpu::isa()));
    entry.Set("threads", cpu::threadCount());
  }
  const DeviceMemory memory = device.memory();
  if (memory.totalBytes == 0) return entry;
  entry.Set("freeBytes", static_cast<double>(memory.freeBytes));
  entry.Set("totalBytes", static_cast<double>(memory.totalBytes));
  return entry;
}

// describe(device) → its entry as in devices(); throws what is missing where it cannot be used
Napi::Value describe(const Napi::CallbackInfo& info) {
  const std::string name = string(info, 0);
  return described(info.Env(), name, device(name));
}

// devices() → every kind this build knows, and cuda always: with what is missing where it cannot be used
Napi::Value listDevices(const Napi::CallbackInfo& info) {
  auto list = Napi::Array::New(info.Env());
  std::vector<std::string> names;
  for (const DeviceKind& kind : deviceKinds()) names.push_back(kind.name);
  if (std::find(names.begin(), names.end(), "cuda") == names.end()) names.push_back("cuda");
  std::sort(names.begin(), names.end());  // cpu, cuda, emulated
  for (const std::string& name : names) {
    std::string missing = missingDevice(name);
    try {
      if (missing.empty()) list.Set(list.Length(), described(info.Env(), name, device(name)));
    } catch (const Error& error) {  // too old a GPU, or a lost one
      missing = error.what();
    }
    if (missing.empty()) continue;
    auto entry = Napi::Object::New(info.Env());
    entry.Set("name", name);
    entry.Set("description", "not available");
    entry.Set("missing", missing);
    list.Set(list.Length(), entry);
  }
  return list;
}

Napi::Value listKernels(const Napi::CallbackInfo& info) {
  auto list = Napi::Array::New(info.Env());
  for (const Kernel& kernel : kernels()) {
    auto entry = Napi::Object::New(info.Env());
    entry.Set("name", kernel.name);
    entry.Set("device", kernel.device);
    entry.Set("signature", kernel.signature);
    list.Set(list.Length(), entry);
  }
  return list;
}

Napi::Value setThreads(const Napi::CallbackInfo& info) {
  const int count = static_cast<int>(number(info, 0, 0, 1024));
  return environment(info).submit(info.Env(), device("cpu"), 0, [count](const auto&) -> Settle {
    cpu::setThreadCount(count);
    return [](Napi::Env env) -> Napi::Value { return Napi::Number::New(env, cpu::threadCount()); };
  });
}

// open(device) → store
Napi::Value open(const Napi::CallbackInfo& info) {
  auto& self = environment(info);
  return Napi::Number::New(info.Env(), self.add(self.stores, std::make_shared<Store>(device(string(info, 0)))));
}

Shape shapeOf(const Napi::CallbackInfo& info, const Napi::Value& value) {
  // Read once: a getter among the elements could make the array longer.
  const uint32_t rank = value.IsArray() ? value.As<Napi::Array>().Length() : RankMax + 1;
  if (rank > RankMax) refuse(info, "BAD_SHAPE", "upload: a shape of at most 6 sizes is expected");
  Shape shape{.rank = static_cast<int>(rank)};
  double elements = 1;
  for (uint32_t i = 0; i < rank; i++) {
    const Napi::Value size = value.As<Napi::Array>()[i];
    const double sizeAt = size.IsNumber() ? size.As<Napi::Number>().DoubleValue() : -1;
    elements *= sizeAt;
    if (!(sizeAt >= 1) || sizeAt != std::floor(sizeAt) || elements > 1e13) refuse(info, "BAD_SHAPE", "upload: sizes are whole numbers of at least 1");
    shape.dims[i] = static_cast<int64_t>(sizeAt);
  }
  return shape;
}

// upload(store, storage, name, dtype, shape, bytes, offset)
Napi::Value upload(const Napi::CallbackInfo& info) {
  auto store = find(info, environment(info).stores, "model");
  const auto storage = static_cast<Storage>(number(info, 1, 2, StorageCount - 1));
  const auto dtype = static_cast<Dtype>(number(info, 3, 0, DtypeCount - 1));
  const Shape shape = shapeOf(info, info[4]);
  const auto offset = static_cast<size_t>(number(info, 6, 0, 9e15));
  return environment(info).submit(info.Env(), store->device, 0, [store, storage, name = string(info, 2), dtype, shape, offset,
                                                  bytes = bytesOf(info, info[5])](const auto&) -> Settle {
    store->write(store->entry(storage, name, dtype, shape), offset, bytes);
    return [](Napi::Env env) { return env.Undefined(); };
  });
}

// download(store, storage, name, offset, length) → bytes; length 0 means to the end
Napi::Value download(const Napi::CallbackInfo& info) {
  auto store = find(info, environment(info).stores, "model");
  const auto storage = static_cast<Storage>(number(info, 1, 2, StorageCount - 1));
  const auto offset = static_cast<size_t>(number(info, 3, 0, 9e15)), asked = static_cast<size_t>(number(info, 4, 0, 9e15));
  return environment(info).submit(info.Env(), store->device, 0, [store, storage, name = string(info, 2), offset, asked](const auto&) -> Settle {
    const Entry& entry = store->existing(storage, name);
    const size_t size = entry.sizeBytes(), length = asked ? asked : size - std::min(size, offset);
    check(offset <= size && length <= size - offset, "BAD_SHAPE", "download: ", length, " bytes at ", offset, " of ", size, " in ", name);
    auto bytes = std::make_shared<std::vector<std::byte>>(length);
    store->read(entry, offset, *bytes);
    store->device.synchronize();
    return [bytes](Napi::Env env) { return toBytes(env, *bytes); };
  });
}

// compile(store, bytes, profiled) → { program, peakBytes, placements }
Napi::Value compile(const Napi::CallbackInfo& info) {
  auto store = find(info, environment(info).stores, "model");
  Environment* self = &environment(info);
  const auto handle = static_cast<Handle>(number(info, 0, 0, 4294967295.0));
  const bool profiled = !info[2].IsUndefined() && number(info, 2, 0, 1) == 1;
  return self->submit(info.Env(), store->device, 0, [self, handle, store, profiled, bytes = bytesOf(info, info[1])](const auto&) -> Settle {
    auto executable = std::make_shared<Executable>(store, decodeProgram(bytes), profiled);
    return [self, handle, executable](Napi::Env env) -> Napi::Value {
      check(self->stores.contains(handle), "DISPOSED", executable->program().name, ": the model was disposed while this was compiled");
      auto result = Napi::Object::New(env);
      result.Set("program", self->add(self->programs, executable));
      result.Set("peakBytes", static_cast<double>(executable->peakBytes()));
      auto placements = Napi::Array::New(env);
      for (const auto& placement : executable->placements()) {
        auto entry = Napi::Array::New(env, 5);
        entry.Set(0u, placement.value);
        entry.Set(1u, static_cast<double>(placement.offset));
        entry.Set(2u, static_cast<double>(placement.bytes));
        entry.Set(3u, placement.first);
        entry.Set(4u, placement.last);
        placements.Set(placements.Length(), entry);
      }
      result.Set("placements", placements);
      return result;
    };
  });
}

// The inputs of a program: an array of views.
std::vector<std::vector<std::byte>> inputsOf(const Napi::CallbackInfo& info, size_t i, const char* where) {
  if (!info[i].IsArray()) refuse(info, "BAD_INPUT", std::string(where) + ": an array of inputs is expected");
  const auto given = info[i].As<Napi::Array>();
  std::vector<std::vector<std::byte>> inputs;
  for (uint32_t at = 0; at < given.Length(); at++) inputs.push_back(bytesOf(info, given[at]));
  return inputs;
}

Napi::Value toArrays(Napi::Env env, const std::vector<std::vector<std::byte>>& results) {
  auto list = Napi::Array::New(env, results.size());
  for (size_t i = 0; i < results.size(); i++) list.Set(static_cast<uint32_t>(i), toBytes(env, results[i]));
  return list;
}

// run(program, inputs, runId) → outputs, as arrays of bytes; runId is the caller's name for the run, for abort()
Napi::Value run(const Napi::CallbackInfo& info) {
  auto executable = find(info, environment(info).programs, "program");
  auto inputs = inputsOf(info, 1, "run");
  const auto runId = static_cast<Handle>(number(info, 2, 1, 4294967295.0));
  return environment(info).submit(info.Env(), executable->store().device, runId, [executable, inputs = std::move(inputs)](const Turn& turn) -> Settle {
    auto results = std::make_shared<std::vector<std::vector<std::byte>>>(executable->run(inputs, turn.abort));
    return [results](Napi::Env env) { return toArrays(env, *results); };
  });
}

// runSteps(program, inputs, runId, count, output, input, ends, microseconds) → outputs of the steps that were done, one after another
Napi::Value runSteps(const Napi::CallbackInfo& info) {
  auto executable = find(info, environment(info).programs, "program");
  auto inputs = inputsOf(info, 1, "runSteps");
  const auto runId = static_cast<Handle>(number(info, 2, 1, 4294967295.0));
  Steps steps{.count = static_cast<size_t>(number(info, 3, 1, 65536)),
              .output = static_cast<int>(number(info, 4, 0, 65536)),
              .input = static_cast<int>(number(info, 5, 0, 65536)),
              .ends = {},
              .secondsMost = number(info, 7, 0, 4294967295.0) * 1e-6};
  const std::vector<std::byte> ends = bytesOf(info, info[6]);
  if (ends.size() % sizeof(int32_t) != 0) refuse(info, "BAD_INPUT", "runSteps: ends are an array of i32");
  steps.ends.resize(ends.size() / sizeof(int32_t));
  if (!ends.empty()) std::memcpy(steps.ends.data(), ends.data(), ends.size());
  return environment(info).submit(info.Env(), executable->store().device, runId,
                                  [executable, inputs = std::move(inputs), steps = std::move(steps)](const Turn& turn) mutable -> Settle {
    steps.waiting = &turn.waiting;
    auto results = std::make_shared<std::vector<std::vector<std::byte>>>(executable->run(inputs, turn.abort, steps));
    return [results](Napi::Env env) { return toArrays(env, *results); };
  });
}

// abort(runId): the run stops before its next node, or does not begin
Napi::Value abort(const Napi::CallbackInfo& info) {
  environment(info).abort(static_cast<Handle>(number(info, 0, 1, 4294967295.0)));
  return info.Env().Undefined();
}

// copySlot(store, from, to)
Napi::Value copySlot(const Napi::CallbackInfo& info) {
  auto store = find(info, environment(info).stores, "model");
  const auto from = static_cast<int64_t>(number(info, 1, 0, 4294967295.0)), to = static_cast<int64_t>(number(info, 2, 1, 4294967295.0));
  return environment(info).submit(info.Env(), store->device, 0, [store, from, to](const auto&) -> Settle {
    store->copySlot(from, to);
    return [](Napi::Env env) { return env.Undefined(); };
  });
}

// memory(store) → bytes of each kind
Napi::Value memory(const Napi::CallbackInfo& info) {
  auto store = find(info, environment(info).stores, "model");
  return environment(info).submit(info.Env(), store->device, 0, [store](const auto&) -> Settle {
    // Counted here, on the queue's thread: another job may change the store by the time the promise resolves.
    const std::array<std::pair<const char*, size_t>, 6> sizes{{{"weights", store->sizeBytes(Storage::weight)},
                                                               {"training", store->sizeBytes(Storage::training)},
                                                               {"states", store->sizeBytes(Storage::state)},
                                                               {"rings", store->sizeBytes(Storage::ring)},
                                                               {"derived", store->derivedBytes()},
                                                               {"arena", store->arenaBytes()}}};
    return [sizes](Napi::Env env) -> Napi::Value {
      auto result = Napi::Object::New(env);
      for (const auto& [name, bytes] : sizes) result.Set(name, static_cast<double>(bytes));
      return result;
    };
  });
}

// profile(program) → seconds spent in each node so far
Napi::Value profile(const Napi::CallbackInfo& info) {
  auto executable = find(info, environment(info).programs, "program");
  return environment(info).submit(info.Env(), executable->store().device, 0, [executable](const auto&) -> Settle {
    auto seconds = std::make_shared<std::vector<double>>(executable->seconds());
    return [seconds](Napi::Env env) -> Napi::Value {
      auto list = Napi::Array::New(env, seconds->size());
      for (size_t i = 0; i < seconds->size(); i++) list.Set(static_cast<uint32_t>(i), (*seconds)[i]);
      return list;
    };
  });
}

// dispose(handle): of a program, or of a store with all its programs; waits for what runs
Napi::Value dispose(const Napi::CallbackInfo& info) {
  Environment& self = environment(info);
  const auto handle = static_cast<Handle>(number(info, 0, 1, 4294967295.0));
  std::shared_ptr<Store> store;
  std::vector<std::shared_ptr<Executable>> programs;
  if (auto at = self.stores.find(handle); at != self.stores.end()) {
    store = std::move(at->second);
    self.stores.erase(at);
    std::erase_if(self.programs, [&](auto& entry) {
      if (&entry.second->store() != store.get()) return false;
      programs.push_back(std::move(entry.second));
      return true;
    });
  } else if (auto found = self.programs.find(handle); found != self.programs.end()) {
    programs.push_back(std::move(found->second));
    self.programs.erase(found);
  }
  Device& target = store ? store->device : programs.empty() ? device("cpu") : programs[0]->store().device;
  return self.submit(info.Env(), target, 0, [store = std::move(store), programs = std::move(programs)](const auto&) mutable -> Settle {
    programs.clear();
    store.reset();
    return [](Napi::Env env) { return env.Undefined(); };
  });
}

// No C++ exception but Napi::Error may cross the border: any other would end the process.
template <Napi::Value (*Function)(const Napi::CallbackInfo&)>
Napi::Value guarded(const Napi::CallbackInfo& info) {
  try {
    return Function(info);
  } catch (const Napi::Error&) {
    throw;
  } catch (const std::exception& thrown) {
    const Error error = asError(thrown);
    refuse(info, error.code.c_str(), error.what());
  }
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData(new Environment(env));
  const auto define = [&](const char* name, auto function) { exports.Set(name, Napi::Function::New(env, function, name)); };
  define("devices", guarded<listDevices>);
  define("describe", guarded<describe>);
  define("kernels", guarded<listKernels>);
  define("setThreads", guarded<setThreads>);
  define("open", guarded<open>);
  define("upload", guarded<upload>);
  define("download", guarded<download>);
  define("compile", guarded<compile>);
  define("run", guarded<run>);
  define("runSteps", guarded<runSteps>);
  define("abort", guarded<abort>);
  define("copySlot", guarded<copySlot>);
  define("memory", guarded<memory>);
  define("profile", guarded<profile>);
  define("dispose", guarded<dispose>);
  return exports;
}

}  // namespace
}  // namespace selscan

static Napi::Object initAddon(Napi::Env env, Napi::Object exports) { return selscan::init(env, exports); }
NODE_API_MODULE(selscan, initAddon)
