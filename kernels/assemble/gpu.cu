// Fills out [n, columns] from matrix [n, wide] and hashes, n a row, by a plan: kernels/assemble/naive.py. Threads go through
// the elements as they lie.
enum { NUMBER, MISSING, ONE_HOT, BUCKET };

// of: fill, low, high, log, mean and scale.
__device__ float number(float x, const float* of) {
    if (x != x) x = of[0];
    x = fminf(fmaxf(x, of[1]), of[2]);
    if (of[3] != 0) x = copysignf(log1pf(fabsf(x)), x);
    return (x - of[4]) / of[5];
}

extern "C" __global__ void assemble(const float* __restrict__ matrix, const unsigned long long* __restrict__ hashes,
                                    const int* __restrict__ kinds, const int* __restrict__ sources,
                                    const int* __restrict__ places, const float* __restrict__ values,
                                    float* __restrict__ out, long long n, int wide, int columns) {
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n * columns; i += stride) {
        const long long row = i / columns;
        const int column = (int)(i % columns), kind = kinds[column], source = sources[column];
        if (kind == BUCKET) {
            const unsigned long long h = hashes[source * n + row];
            out[i] = h ? (float)(1 + h % (unsigned long long)(places[column] - 1)) : 0.0f;
            continue;
        }
        const float raw = matrix[row * wide + source];
        if (kind == NUMBER) out[i] = number(raw, values + column * 6);
        else if (kind == MISSING) out[i] = raw != raw ? 1.0f : 0.0f;
        else out[i] = raw == (float)places[column] ? 1.0f : 0.0f;
    }
}
