// The sanitizers' interfaces as weak symbols, null in a build without them: one object of the emulator serves every build.
#pragma once
#include <cstddef>

extern "C" {
[[gnu::weak]] void* __tsan_get_current_fiber();
[[gnu::weak]] void* __tsan_create_fiber(unsigned flags);
[[gnu::weak]] void __tsan_destroy_fiber(void* fiber);
[[gnu::weak]] void __tsan_switch_to_fiber(void* fiber, unsigned flags);
[[gnu::weak]] void __tsan_set_fiber_name(void* fiber, const char* name);
[[gnu::weak]] void __tsan_acquire(void* tag);
[[gnu::weak]] void __tsan_release(void* tag);
[[gnu::weak]] void __tsan_read_range(void* data, unsigned long bytes);
[[gnu::weak]] void __tsan_write_range(void* data, unsigned long bytes);
[[gnu::weak]] void __sanitizer_start_switch_fiber(void** fakeStack, const void* bottom, size_t bytes);
[[gnu::weak]] void __sanitizer_finish_switch_fiber(void* fakeStack, const void** bottom, size_t* bytes);
[[gnu::weak]] void __asan_poison_memory_region(void const volatile* data, size_t bytes);
[[gnu::weak]] void __asan_unpoison_memory_region(void const volatile* data, size_t bytes);
[[gnu::weak]] void __sanitizer_symbolize_pc(void* address, const char* format, char* text, size_t bytes);
}

namespace selscan::emulator {

inline bool underTsan() { return __tsan_switch_to_fiber != nullptr; }
inline bool underAsan() { return __asan_poison_memory_region != nullptr; }

// What this CUDA thread did so far happens before what another does after acquire() of the same tag.
inline void release(void* tag) {
  if (__tsan_release) __tsan_release(tag);
}
inline void acquire(void* tag) {
  if (__tsan_acquire) __tsan_acquire(tag);
}
// Accesses that the emulator makes on behalf of a CUDA thread.
inline void recordRead(const void* data, size_t bytes) {
  if (__tsan_read_range) __tsan_read_range(const_cast<void*>(data), bytes);
}
inline void recordWrite(void* data, size_t bytes) {
  if (__tsan_write_range) __tsan_write_range(data, bytes);
}
// Memory that nobody may touch, in granules of 8 bytes.
inline void forbid(const void* data, size_t bytes) {
  if (__asan_poison_memory_region) __asan_poison_memory_region(data, bytes);
}
inline void permit(const void* data, size_t bytes) {
  if (__asan_unpoison_memory_region) __asan_unpoison_memory_region(data, bytes);
}

}  // namespace selscan::emulator
