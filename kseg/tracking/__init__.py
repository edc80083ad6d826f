"""Report runs to servers that track experiments; TensorBoard and metrics.jsonl are written without this."""
