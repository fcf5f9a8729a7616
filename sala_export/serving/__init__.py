"""The server: OpenAI's and Anthropic's protocols over HTTP, made for prompts of a million tokens."""
