// Runs a CUDA kernel on a CPU, a thread for each of a block's threads: the text of the CUDA writer is tested with no GPU.
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>
using std::isfinite; using std::isinf; using std::signbit;
#define __global__
#define __device__ static
#define __launch_bounds__(n)
#define __shared__ static
struct Dimension { int x; };
static thread_local Dimension threadIdx;
static thread_local int shim_warp_lane;
static thread_local Dimension blockIdx;
static std::unique_ptr<std::barrier<>> shim_block;
static std::vector<std::unique_ptr<std::barrier<>>> shim_warps;
static std::vector<unsigned char> shim_values;
static inline void __syncthreads() { shim_block->arrive_and_wait(); }
template <typename T> static T __shfl_xor_sync(unsigned, T value, int step) {
    const int warp = threadIdx.x / 32, other = threadIdx.x ^ step;
    std::memcpy(&shim_values[threadIdx.x * 8], &value, sizeof(T));
    shim_warps[warp]->arrive_and_wait();
    T result;
    std::memcpy(&result, &shim_values[other * 8], sizeof(T));
    shim_warps[warp]->arrive_and_wait();
    return result;
}
static inline float __int_as_float(int x) { float y; std::memcpy(&y, &x, 4); return y; }
static inline int __float_as_int(float x) { int y; std::memcpy(&y, &x, 4); return y; }
static inline double __longlong_as_double(long long x) { double y; std::memcpy(&y, &x, 8); return y; }
static inline long long __double_as_longlong(double x) { long long y; std::memcpy(&y, &x, 8); return y; }
static inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
static inline double rsqrt(double x) { return 1 / std::sqrt(x); }
template <typename Kernel> static void shim_run(int blocks, int threads, Kernel kernel) {
    shim_values.resize(threads * 8);
    shim_block = std::make_unique<std::barrier<>>(threads);
    shim_warps.clear();
    for (int w = 0; w < (threads + 31) / 32; ++w) shim_warps.push_back(std::make_unique<std::barrier<>>(32));
    std::vector<std::thread> all;
    for (int t = 0; t < threads; ++t)
        all.emplace_back([=] {
            threadIdx.x = t;
            for (int block = 0; block < blocks; ++block) {
                blockIdx.x = block;
                kernel();
                shim_block->arrive_and_wait();
            }
        });
    for (auto &each : all) each.join();
}
