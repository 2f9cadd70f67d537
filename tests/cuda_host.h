// Runs CUDA C++ on a host, to prove what it computes: a block's threads are threads, its blocks run one after another, and
// __syncthreads is a barrier. Shared memory is full of nonsense when a block begins, as it may be on a device.
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

struct Index { unsigned x = 0, y = 0, z = 0; };
struct alignas(16) float4 { float x, y, z, w; };
static thread_local Index threadIdx, blockIdx;
static Index blockDim, gridDim;
static std::unique_ptr<std::barrier<>> everybody;
static std::vector<std::max_align_t> memory;

#define __global__
#define __device__ static inline
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(memory.data())

static inline void __syncthreads() { everybody->arrive_and_wait(); }
template <class T> static inline T atomicAdd(T* at, T more) { return __atomic_fetch_add(at, more, __ATOMIC_RELAXED); }

template <class... A, std::size_t... I>
static void call(void (*kernel)(A...), void** given, std::index_sequence<I...>) { kernel(*static_cast<A*>(given[I])...); }

template <class... A>
static void launch(void (*kernel)(A...), unsigned grid, unsigned block, std::size_t shared, void** given) {
    blockDim.x = block, gridDim.x = grid;
    memory.resize(shared / sizeof(std::max_align_t) + 1);
    for (unsigned b = 0; b < grid; ++b) {
        std::memset(memory.data(), 0xAB, memory.size() * sizeof(std::max_align_t));
        everybody = std::make_unique<std::barrier<>>(block);
        std::vector<std::thread> threads;
        for (unsigned t = 0; t < block; ++t)
            threads.emplace_back([=] {
                threadIdx.x = t, blockIdx.x = b;
                call(kernel, given, std::make_index_sequence<sizeof...(A)>{});
                everybody->arrive_and_drop();
            });
        for (auto& thread : threads) thread.join();
    }
}
