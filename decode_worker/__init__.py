"""The decode worker (D): receives prompts' KV blocks and streams the answers."""
