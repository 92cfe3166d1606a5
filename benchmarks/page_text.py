"""The text of benchmarks/README.md; all its figures come from the results."""

INTRODUCTION = """# Benchmarks

Written by `python -m benchmarks.render_page` from [results/](results/); not edited by hand.

    dive bench                                       from the wheel, on a user's machine
    make bench                                       all benchmarks briefly, by pytest-benchmark
    python -m benchmarks.bench_cross_entropy         one operator, into results/<device>-*.json
    python -m benchmarks.bench_llama_cpp             decoding against llama.cpp, on a quiet CPU
    benchmarks/gpu.sh visit first                    on a GPU machine for some minutes
    benchmarks/gpu.sh loss steer decode              the files in results/ of a GPU
    python -m benchmarks.suspicions                  on a GPU: defaults against alternatives
    DIVE_BENCH_TOY=1 benchmarks/gpu.sh all           a rehearsal at toy size on a CPU

All ways of one case run in turns in one process, and a figure is the median of its turns: of the
time between events on a GPU, of the CPU time of the process on a CPU, where other processes disturb
the wall clock. The floor is measured in the same run. A way that did not run is listed with its
reason. A results file names its machine, versions, commit and load.
"""

# for a file whose floor was only measured by torch's own way
SOFT = """The floor here is torch's own pass over memory, from front to back. Other ways can be
faster, and then the true shares are lower."""

# title, kinds of results, explanation
SECTIONS: list[tuple[str, tuple[str, ...], str]] = [
    (
        "Decisive cross entropy",
        ("cross-entropy",),
        """The floor is the matrix products over the live rows alone: one for the loss, two with
its gradient, one more for a teacher. "on live rows" was given rows that were gathered before the
clock started. TFLOP/s count only those products. Peers are called with a frozen head; those without
weights per token leave dead rows out by the ignored target.""",
    ),
    (
        "Steering",
        ("steer",),
        """The floor is two passes over [T, D] forward and five with the gradient, at the rate of
the fastest copy of several (torch's; on a CPU also in streams, through the caches and past them) in
the same turns. `hand algebra` is the smallest number of PyTorch calls; `bare function` an
autograd.Function around the same arithmetic, which shows the cost of checks and registration.""",
    ),
    (
        "Steering with several adapters",
        ("steer-grouped",),
        """`dive.ops.steer_grouped_`, which an engine calls after every layer. `one adapter` and
`no adapter` are the same call with all tokens so; `loop over steer` takes the tokens of an adapter
out, steers them with `dive.ops.steer` and puts the change back. The floor is one pass over hidden
and residual and the writing of hidden, at the rate of a copy; on a GPU `replayed` is a graph of
the call, which is what an engine runs.""",
    ),
    (
        "Decoding",
        ("decode-pairs", "decode"),
        """The floor is the bytes that a step must read, weights and cache, over the rate at which
the device reads memory in the same run, by the fastest of several ways: torch's, and on a CPU
several parallel streams in huge pages, over as many bytes as a step reads. Random weights, greedy
decoding.""",
    ),
    (
        "Decoding against llama.cpp",
        ("llama-cpp",),
        """Greedy decoding with the same random weights, prompts and threads, in turns in one
process: CPU time, and the ratio of the two in each turn. `same tokens`: in bfloat16 the two round
at different points, and once one token differs, so does the rest of the answer.
[bench_llama_cpp.py](bench_llama_cpp.py) has the installation and what is kept equal.""",
    ),
    (
        "Decoding: reports of mixed lengths",
        ("refill",),
        """32 prompts with answers of 10 to 160 tokens in 8 slots, one thread: continuous batching.
`in_groups` fills no slot before all are free; transformers pads a batch to its longest prompt.""",
    ),
    (
        "Decoding: threads with busy neighbours",
        ("engine-threads",),
        """ms per step of the wall clock, and the ratio to that of one thread.""",
    ),
    (
        "Steered requests in vLLM",
        ("vllm",),
        """64 requests at once to one engine, greedy, with no adapter, one, or five mixed;
`no dive` is vLLM's own class of the model without LoRA, in an engine beside it. "of" is the
throughput over that of another way in the same round: median, and the least and the most of the
rounds. The narrower a model, the more an adapter costs beside it: layers cost the square of the
width, adapters the width.""",
    ),
    (
        "Steering in a decode step",
        ("steer-step",),
        """[residual add + steering + RMSNorm] of one layer. `hot` weights are in the cache, `cold`
ones are not, as between two steps of a real model.""",
    ),
    ("Distillation", ("distill-run", "distill"), ""),
    ("Readers", ("readers",), ""),
    (
        "Before the first step",
        ("survey",),
        """Wall-clock seconds since the start of the program, and CPU seconds of all processes
together; `load` is that of the machine before the start.""",
    ),
    ("Tuning of kernels", ("tune",), ""),
    ("More", ("other",), ""),
    ("GPU stages", ("build", "test", "peers", "sanitize"), ""),
]

CLOSING = """## Peers

| package | function | where it runs |
| --- | --- | --- |
| torch | `F.linear_cross_entropy`: mean, none; whole, or in its own chunks | where torch has it |
| liger-kernel | fused linear cross entropy (mean, none), fused JSD at beta 0 | GPU |
| cut-cross-entropy | `linear_cross_entropy` | GPU |
| quack-kernels | `chunked_linear_cross_entropy` | GPU (Hopper and later) |
| llama-cpp-python, gguf | llama.cpp, greedy decoding of bfloat16 and float32 | CPU |

A peer is only timed if it does the same work: its gradient is within 5% of the reference's, its
logits within 3% (bfloat16) or 0.1% (float32) of the model's own.
"""
