//! The OpenAI-compatible server: HTTP in front of the inference engine and the tokenizer.
