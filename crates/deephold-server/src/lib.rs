//! The HTTP service: OpenAI, DeepSeek and Anthropic APIs, keys, TLS, quotas, metrics.
