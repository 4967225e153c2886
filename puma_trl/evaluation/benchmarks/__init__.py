"""The benchmarks: data, prompts, extraction, scoring and aggregates of each."""
