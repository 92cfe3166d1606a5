"""DIVE inside vLLM: reports that vLLM writes, adapters among them (extra `dive-mrg[vllm]`)."""
