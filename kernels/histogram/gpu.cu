// Adds to counts [features, inner + 2] the rows of matrix [rows, features] by edges [features, inner], ascending and padded with
// +inf: kernels/histogram/naive.py. Features `first` to `first + some` only, whose counts and edges fit a block's memory.
// Threads go through the elements as they lie; counts are of the block until its end.
extern "C" __global__ void histogram(const float* __restrict__ matrix, const float* __restrict__ edges,
                                     unsigned long long* __restrict__ counts, long long rows, int features, int inner,
                                     int first, int some) {
    DYNAMIC_SHARED(unsigned int, shared);
    const int bins = inner + 2;
    unsigned int* mine = shared;
    float* bounds = reinterpret_cast<float*>(shared + some * bins);
    for (int i = threadIdx.x; i < some * bins; i += blockDim.x) mine[i] = 0;
    for (int i = threadIdx.x; i < some * inner; i += blockDim.x) bounds[i] = edges[(long long)first * inner + i];
    __syncthreads();
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < rows * some; i += stride) {
        const int feature = (int)(i % some);
        const float value = matrix[i / some * features + first + feature];
        const float* of = bounds + feature * inner;
        int low = 0, high = inner;  // the first edge that is not below the value
        while (low < high) {
            const int middle = (low + high) / 2;
            if (of[middle] < value) low = middle + 1;
            else high = middle;
        }
        atomicAdd(mine + feature * bins + (value != value ? inner + 1 : low), 1u);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < some * bins; i += blockDim.x)
        if (mine[i]) atomicAdd(counts + (long long)first * bins + i, (unsigned long long)mine[i]);
}
