"""A server for OpenAI's protocol, made for long prompts."""
