// The slot of each hash in a table of kernels/table/cpu.py, -1 where it is absent or 0.
extern "C" __global__ void find(const unsigned long long* __restrict__ keys, const int* __restrict__ slots, long long capacity,
                                const unsigned long long* __restrict__ hashes, int* __restrict__ out, long long n) {
    const unsigned long long mask = (unsigned long long)capacity - 1;
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        const unsigned long long h = hashes[i];
        int found = -1;
        if (h)
            for (unsigned long long at = h & mask; keys[at]; at = (at + 1) & mask)
                if (keys[at] == h) {
                    found = slots[at];
                    break;
                }
        out[i] = found;
    }
}
