"""For operators: metrics, traces, an API."""
