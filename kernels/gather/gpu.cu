// The row of a table of which starts has the begin and the end: kernels/gather/naive.py.
__device__ long long row_of(float code, const long long* starts) {
    const long long rows = starts[1] - starts[0];
    return starts[0] + (code >= 0 && code < (float)rows ? (long long)code : 0);
}

// Fills out [n, count, width] from matrix [n, wide], columns `first` to `first + count`, and tables [starts[count], width].
// A unit is one float or several; threads go through them as they lie.
template <class Unit>
__device__ void take(const float* __restrict__ matrix, const Unit* __restrict__ tables, const long long* __restrict__ starts,
                     Unit* __restrict__ out, long long n, int wide, int first, int count, int width) {
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n * count * width; i += stride) {
        const long long place = i / width, row = place / count;
        const int t = (int)(place % count);
        out[i] = tables[row_of(matrix[row * wide + first + t], starts + t) * width + i % width];
    }
}

extern "C" __global__ void gather(const float* __restrict__ matrix, const float* __restrict__ tables,
                                  const long long* __restrict__ starts, float* __restrict__ out, long long n, int wide,
                                  int first, int count, int width) {
    take(matrix, tables, starts, out, n, wide, first, count, width);
}

// The same of four floats at a time, on addresses that are multiples of 16; width in fours.
extern "C" __global__ void gather4(const float* __restrict__ matrix, const float4* __restrict__ tables,
                                   const long long* __restrict__ starts, float4* __restrict__ out, long long n, int wide,
                                   int first, int count, int width) {
    take(matrix, tables, starts, out, n, wide, first, count, width);
}
