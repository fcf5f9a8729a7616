"""Anthropic's protocol, in the terms of `chats`."""
