// The hash of kernels/hashing/naive.py. valid: one byte a row, or null where all are.
typedef unsigned long long u64;

__device__ u64 mix(u64 x) {
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
    return x ^ (x >> 31);
}

__device__ u64 chain(u64 h, u64 word) { return mix((h ^ word) + 0x9E3779B97F4A7C15ull); }

__device__ u64 not_null(u64 h) { return h ? h : 1; }

// n strings: offsets [n + 1] into data.
extern "C" __global__ void hash_strings(const int* __restrict__ offsets, const unsigned char* __restrict__ data,
                                        const unsigned char* __restrict__ valid, u64* __restrict__ out, long long n) {
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        if (valid && !valid[i]) {
            out[i] = 0;
            continue;
        }
        const long long start = offsets[i], end = offsets[i + 1];
        u64 h = chain(0, (u64)(end - start));
        for (long long at = start; at < end; at += 8) {
            u64 word = 0;
            for (long long j = (at + 8 < end ? at + 8 : end) - 1; j >= at; --j) word = word << 8 | data[j];
            h = chain(h, word);
        }
        out[i] = not_null(h);
    }
}

extern "C" __global__ void hash_integers(const long long* __restrict__ values, const unsigned char* __restrict__ valid,
                                         u64* __restrict__ out, long long n) {
    const u64 length = chain(0, 8);
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride)
        out[i] = valid && !valid[i] ? 0 : not_null(chain(length, (u64)values[i]));
}

extern "C" __global__ void combine(const u64* __restrict__ first, const u64* __restrict__ second, u64* __restrict__ out,
                                   long long n) {
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride)
        out[i] = first[i] && second[i] ? not_null(chain(first[i], second[i])) : 0;
}
