"""The latency harness, the workloads, the kernel benchmarks."""
