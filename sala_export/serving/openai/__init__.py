"""OpenAI's protocol: what clients send and get, and what that means to the model."""
