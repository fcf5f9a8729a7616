"""A chat template shows by its markers which format its model writes."""

from __future__ import annotations

import pytest
from support.chat_templates import PUBLIC_STYLES, THINKING

from sala_export.serving.parsing import FORMATS, choose_format


@pytest.mark.parametrize(
    ("source", "format_name"),
    [
        (None, "none"),
        ("{{ messages[0].content }}", "none"),
        ("{{ '<|tool_call_start|>\\n```python\\n' }}{{ '<think>' }}", "minicpm4"),
        ("{{ '<|thought_start|>' + message.thought }}", "minicpm4"),
        ('{{ "<function name=\\"" + name }}<param name={{ "</think>" }}', "minicpm5"),
        (THINKING, "hermes"),
        ("{{ '<think>\\n' }}", "hermes"),
    ],
)
def test_format_is_that_of_the_markers_in_the_template(source: str | None, format_name: str) -> None:
    assert choose_format(source) == format_name


def test_every_public_template_has_a_known_format() -> None:
    assert {choose_format(source) for source in PUBLIC_STYLES.values()} <= set(FORMATS)
    assert FORMATS == ("minicpm4", "minicpm5", "hermes", "none")
