"""The prefill worker (P): computes prompts and hands their KV blocks to decode workers."""
