"""llama.cpp as a peer of the decode session: the benchmark's own model, by llama-cpp-python.

The weights are written to a GGUF file as they are: bfloat16 or float32, norms in float32 as
llama.cpp requires. The rows of the query and key projections are in its order of rotary pairs,
which changes no result. No tokenizer is written: prompts are token ids here.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import version
from dive.bench.peers import Unavailable

PACKAGES = ("llama-cpp-python", "gguf")
_MODULES = {"llama_cpp": PACKAGES[0], "gguf": PACKAGES[1]}


def check_installed() -> None:
    """Raises Unavailable if a package is missing."""
    missing = [name for module, name in _MODULES.items() if not importlib.util.find_spec(module)]
    if missing:
        raise Unavailable(f"{' and '.join(missing)} {'are' if missing[1:] else 'is'} not installed")


def described() -> dict[str, str]:
    """Returns versions, and the instructions that llama.cpp was compiled for."""
    check_installed()
    import llama_cpp

    said = llama_cpp.llama_print_system_info().decode()
    return {**{name: version(name) for name in PACKAGES}, "compiled_for": " ".join(said.split())}


def tensors(model: Any) -> dict[str, Tensor]:
    """Returns the weights of a LlamaForCausalLM by GGUF name; views unless reordered."""
    config, state = model.config, model.state_dict()
    own = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    found = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
        "output.weight": state["lm_head.weight"],
    }
    for layer in range(config.num_hidden_layers):
        for theirs, name in own.items():
            weight = state[f"model.layers.{layer}.{theirs}.weight"]
            if name in heads:
                weight = interleaved(weight, heads[name])
            found[f"blk.{layer}.{name}.weight"] = weight
    return found


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Returns [heads * width, D] with rows i and i + width / 2 of a head adjacent: rotary pairs."""
    halves = weight.view(heads, 2, -1, weight.shape[-1])
    return halves.transpose(1, 2).reshape(weight.shape)


def write_gguf(model: Any, path: Path) -> None:
    """Writes a GGUF file; ValueError unless it is a plain Llama: llama.cpp would differ."""
    import gguf

    config = model.config
    kind = config.rope_parameters.get("rope_type", "default")
    if config.model_type != "llama" or kind != "default" or config.attention_bias:
        raise ValueError(
            f"llama.cpp is given a {config.model_type} with {kind} RoPE and attention_bias "
            f"{config.attention_bias}, want a llama with default RoPE and no bias"
        )
    formats = {
        torch.bfloat16: (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
        torch.float32: (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    }
    format_, file_type = formats[model.dtype]
    width = config.hidden_size // config.num_attention_heads
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(file_type)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("none")
    for name, weight in tensors(model).items():
        if weight.ndim == 1:
            writer.add_tensor(name, weight.float().numpy())
        else:
            bits = weight.view(torch.uint16) if weight.dtype == torch.bfloat16 else weight
            writer.add_tensor(name, bits.numpy(), raw_dtype=format_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """Greedy decoding of a batch by llama.cpp, on the CPU.

    For a bfloat16 model the cache is float16, llama.cpp's default. For a float32 model it is
    float32, and attention is not the fused one, which rounds to float16: the same work as the
    session's. RuntimeError if llama.cpp refuses.
    """

    def __init__(self, model: Any, folder: Path, threads: int, batch: int, tokens: int) -> None:
        """tokens: prompt and answer of one sequence. The weights are written to a file once."""
        check_installed()
        import llama_cpp

        self.api: Any = llama_cpp
        path = folder / f"{str(model.dtype).removeprefix('torch.')}.gguf"
        if not path.exists():
            write_gguf(model, path)
        _silence(llama_cpp)
        llama_cpp.llama_backend_init()
        self.vocabulary: int = model.config.vocab_size
        self.batch: Any = None
        self.context: Any = None
        self.model: Any = llama_cpp.llama_model_load_from_file(
            str(path).encode(), llama_cpp.llama_model_default_params()
        )
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        given = llama_cpp.llama_context_default_params()
        given.n_ctx = batch * -(-tokens // 256) * 256
        given.n_seq_max = batch
        given.n_batch = given.n_ubatch = max(512, batch * tokens)
        given.n_threads = given.n_threads_batch = threads
        if model.dtype == torch.float32:
            given.type_k = given.type_v = llama_cpp.GGML_TYPE_F32
            given.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = llama_cpp.llama_init_from_model(self.model, given)
        if not self.context:
            raise RuntimeError("llama.cpp cannot create a context of this size")
        self.batch = llama_cpp.llama_batch_init(given.n_batch, 0, 1)

    def close(self) -> None:
        """Frees its memory; the file stays."""
        if self.batch is not None:
            self.api.llama_batch_free(self.batch)
        if self.context:
            self.api.llama_free(self.context)
        if self.model:
            self.api.llama_model_free(self.model)
        self.batch = self.context = self.model = None

    def generate(self, ids: Tensor, new: int, token_came: Callable[[], None]) -> Tensor:
        """Returns prompt and answer [B, T + new] of ids [B, T]; calls token_came per new token."""
        sequences, length = ids.shape
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        prompt = ids.tolist()
        tokens = [
            (token, position, sequence, position == length - 1)
            for sequence in range(sequences)
            for position, token in enumerate(prompt[sequence])
        ]
        answer = np.empty((sequences, new), np.int64)
        answer[:, 0] = self._most_likely(tokens)
        token_came()
        for index in range(1, new):
            position = length + index - 1
            tokens = [
                (int(answer[sequence, index - 1]), position, sequence, True)
                for sequence in range(sequences)
            ]
            answer[:, index] = self._most_likely(tokens)
            token_came()
        return torch.cat([ids, torch.from_numpy(answer)], 1)

    def logits(self, ids: Tensor) -> Tensor:
        """Returns logits, float32 [T, V], of every token of one sequence, ids [T]."""
        self.api.llama_memory_clear(self.api.llama_get_memory(self.context), True)
        found = self._decode(
            [(token, position, 0, True) for position, token in enumerate(ids.tolist())]
        )
        return torch.stack([torch.from_numpy(one.copy()) for one in found])

    def _most_likely(self, tokens: list[tuple[int, int, int, bool]]) -> list[int]:
        return [int(one.argmax()) for one in self._decode(tokens)]

    def _decode(self, tokens: list[tuple[int, int, int, bool]]) -> list[Any]:
        """Returns the logits of the tokens (token, position, sequence, wanted) that are wanted."""
        batch: Any = self.batch
        batch.n_tokens = len(tokens)
        for at, (token, position, sequence, wanted) in enumerate(tokens):
            batch.token[at], batch.pos[at] = token, position
            batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
            batch.logits[at] = wanted
        if status := self.api.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode returns {status}")
        return [
            np.ctypeslib.as_array(
                self.api.llama_get_logits_ith(self.context, at), (self.vocabulary,)
            )
            for at, one in enumerate(tokens)
            if one[3]
        ]


def _silence(llama_cpp: Any) -> None:
    """Turns off llama.cpp's log on stderr; failures raise here."""
    global _quiet
    if _quiet is None:
        _quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(_quiet, None)


_quiet: Any = None  # kept alive: the library holds a pointer to it
