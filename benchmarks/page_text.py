"""The words of benchmarks/README.md; its figures come from the results alone."""

INTRODUCTION = """# Benchmarks

Written by `python -m benchmarks.render_page` from [results/](results/); not edited by hand.

    dive bench                                       from the wheel, on a user's machine
    make bench                                       a look at everything here, by pytest-benchmark
    python -m benchmarks.bench_cross_entropy         one operator, into results/<device>-*.json
    python -m benchmarks.bench_llama_cpp             decoding beside llama.cpp, on a quiet CPU
    benchmarks/gpu.sh visit first                    on a GPU machine that is had for minutes
    benchmarks/gpu.sh loss steer decode              the files in results/ of a GPU
    python -m benchmarks.suspicions                  on a GPU: defaults beside what may be faster
    DIVE_BENCH_TOY=1 benchmarks/gpu.sh all           those at toy size on a CPU, in a minute

All ways of one case run in turns in one process, and a figure is the median of its turns: of the
time between events on a GPU, of the process's CPU time on a CPU, where neighbours disturb the
wall clock. The floor is measured in the same run. A way that did not run is named with its
reason. A results file says which machine, versions, commit and load it is of.
"""

# under a file whose floor no other way than torch's was tried for
SOFT = """The floor here is torch's own pass over memory, from front to back. Others can be faster,
and then the true shares are lower."""

# title, kinds of results, what to know
SECTIONS: list[tuple[str, tuple[str, ...], str]] = [
    (
        "Decisive cross entropy",
        ("cross-entropy",),
        """The floor is the matrix products over the live rows, alone: one for the loss, two with
its gradient, one more for a teacher. "on live rows" was given rows that were gathered before the
clock started. TFLOP/s count those products, whatever a way computes beside them. Peers are called
with a frozen head; those without weights a token leave dead rows out by their ignored target.""",
    ),
    (
        "Steering",
        ("steer",),
        """The floor is two passes over [T, D] forward and five with the gradient, at the rate of
the fastest copy of several (torch's; on a CPU also in streams, through the caches and past them) in
the same turns. `hand algebra` is the fewest PyTorch calls that do it; `bare function` an
autograd.Function around the same arithmetic, which shows what checks and registration cost.""",
    ),
    (
        "Decoding",
        ("decode-pairs", "decode"),
        """The floor is the bytes that a step must read, weights and cache, over the rate at which
the device reads memory in the same run, by the fastest of several ways: torch's, and on a CPU
several streams side by side in huge pages, over as many bytes as a step reads. Random weights,
greedy.""",
    ),
    (
        "Decoding beside llama.cpp",
        ("llama-cpp",),
        """Greedy, the same random weights, prompts and threads, in turns in one process: CPU time,
and the ratio of the two of each turn. `same tokens`: in bfloat16 both round in places of their own,
and once one token differs the rest of an answer does. [bench_llama_cpp.py](bench_llama_cpp.py) says
how to install llama.cpp and what is held equal.""",
    ),
    (
        "Decoding: reports of mixed lengths",
        ("refill",),
        """32 prompts with answers of 10 to 160 tokens in 8 rows, one thread. `in_groups` is the
same without the refill; transformers pads a batch to its longest.""",
    ),
    (
        "Decoding: threads beside busy neighbours",
        ("engine-threads",),
        """ms a step of the wall clock, and its ratio to that of one thread.""",
    ),
    (
        "Steering in a decode step",
        ("steer-step",),
        """[residual add + steering + RMSNorm] of one layer. `hot` weights lie in the cache, `cold`
ones do not, as between two steps of a real model.""",
    ),
    ("Distillation", ("distill-run", "distill"), ""),
    ("Readers", ("readers",), ""),
    (
        "Before the first step",
        ("survey",),
        """Seconds of the clock since the program's start, and of CPU in all processes together;
`load` is what the machine had to do besides, before it began.""",
    ),
    ("Tuning of kernels", ("tune",), ""),
    ("More", ("other",), ""),
    ("GPU stages", ("build", "test", "peers", "sanitize"), ""),
]

CLOSING = """## Peers

| package | what of it | where it runs |
| --- | --- | --- |
| torch | `F.linear_cross_entropy`: mean, none; whole, or in its own chunks | where torch has it |
| liger-kernel | fused linear cross entropy (mean, none), fused JSD at beta 0 | GPU |
| cut-cross-entropy | `linear_cross_entropy` | GPU |
| quack-kernels | `chunked_linear_cross_entropy` | GPU (Hopper and later) |
| llama-cpp-python, gguf | llama.cpp, greedy decoding of bfloat16 and float32 | CPU |

A peer is timed only if it does the same work: its gradient is within 5% of the reference's, its
logits within 3% (bfloat16) or 0.1% (float32) of the model's own.
"""
