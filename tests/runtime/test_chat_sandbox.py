"""Chat templates that fail, never end or fill the memory are refused soon; those of checkpoints render as in Jinja."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sala_export.errors import BundleError, SessionError, printable
from sala_export.runtime.chat import ChatTemplate

ORIGIN = "a.sala/text/chat_template.jinja"
HELLO = [{"role": "user", "content": "hello"}]
SIXTY = "{% set ns = namespace(x=SEED, y=SEED) %}{% for i in range(60) %}{% set ns.x = NEXT %}{% endfor %}{{ END }}"


def sixty(seed: str, following: str, end: str = "ns.x") -> str:
    """Sixty doublings of a value."""
    return SIXTY.replace("SEED", seed).replace("NEXT", following).replace("END", end)


def refusal(source: str) -> str:
    """The message of the error at compiling or rendering; it is one line, comes soon and names the file."""
    started = time.process_time()
    with pytest.raises((BundleError, SessionError)) as caught:
        ChatTemplate(source, {}, ORIGIN).render(HELLO)
    assert time.process_time() - started < 5
    message = str(caught.value)
    assert message.startswith(f"{ORIGIN}: the chat template ")
    assert message == printable(message)
    assert len(message) < 500
    return message


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{{ 7 % 0 }}", "ZeroDivisionError"),
        ("{{ 3.0 ** 9999 }}", "OverflowError"),
        ("{{ 'abc'.encode('utf-16').decode() }}", "UnicodeDecodeError"),
        ("{{ messages['a']['b'] }}", "no attribute"),
        ("{{ {}.popitem() }}", "unsafe"),
        ("{{ [1] < 'a' }}", "TypeError"),
        ("{{ '%d' % 'a' }}", "TypeError"),
        ("{{ '{a}'.format() }}", "KeyError"),
        ("{% include 'a' %}", "TypeError"),
        ("{{ raise_exception('\\x1b[31mred\n\u202e') }}", "red"),
        ("{{ raise_exception('long' * 100000) }}", "longlong"),
        ("{{ strftime_now(messages) }}", "TypeError"),
        ("{{ messages | tojson(indent=[]) }}", "TypeError"),
        ("{{ messages | tojson(cls=dict) }}", "TypeError"),
        ("{{ lipsum() }}", "undefined"),
        ("{{ 'a' | urlize }}", "urlize"),
    ],
)
def test_failure_of_a_template_is_one_line(source: str, words: str) -> None:
    assert words in refusal(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ " + "[" * 5000 + "]" * 5000 + " }}",
        "{{ " + "-" * 5000 + "1 }}",
        "{{ x" + " | trim" * 5000 + " }}",
        "{{ x" + " - 1" * 9000 + " }}",
        "{{ x" + " ~ 1" * 50_000 + " }}",
        "{% if 1 %}" * 150 + "{% endif %}" * 150,
        "{% for a in [1] %}" * 25 + "{% endfor %}" * 25,
        "{{ 0x" + "f" * 50_000 + " }}",
        "x" * 300_000,
    ],
    ids=["lists", "signs", "filters", "operators", "too many", "blocks", "loops", "digits", "too long"],
)
def test_template_that_the_compiler_cannot_take_is_one_line(source: str) -> None:
    assert "does not compile" in refusal(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{% for x in [[]] recursive %}{{ loop([[]]) }}{% endfor %}",
        "{% block again %}{{ self.again() }}{% endblock %}",
    ],
)
def test_endless_recursion_is_refused(source: str) -> None:
    assert "RecursionError" in refusal(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
        "{% for a in range(90000) %}{% for b in range(90000) if b < 0 %}{% endfor %}{% endfor %}",
        "{% for a in range(90000) %}{{ range(90000) | select('lt', 0) | list }}{% endfor %}",
        "{% for a in range(90000) %}{{ range(90000) | sum and '' }}{% endfor %}",
        "{% for a in range(90000) %}{{ ('ab' * 90000).count('b') and '' }}{% endfor %}",
        "{% macro f() %}{% endmacro %}{% for a in range(90000) %}{{ f() }}{{ f() }}{{ f() }}{{ f() }}{% endfor %}",
        "{% for x in [1, 2] recursive %}{% if loop.depth < 30 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}",
        "{{ messages | map(attribute='" + "a." * 60 + "a') | list }}",
        sixty("[1]", "[ns.x, ns.x]", "ns.x | length in [ns.x | string]"),
        sixty("[1]", "[ns.x, ns.x]", "ns.x == [ns.x[1], ns.x[0] | list]"),
        sixty("(1,)", "(ns.x, ns.x)", "{ns.x: 1}"),
        sixty("(1,)", "(ns.x, ns.x)", "{}[ns.x]"),
        sixty("(1,)", "(ns.x, ns.x)", "{}.get(ns.x)"),
        sixty("(1,)", "(ns.x, ns.x)", "[ns.x, 1] | unique | list"),
        sixty("(1,)", "(ns.x, ns.x)", "1 is in([ns.x])"),
        "{% set a = namespace(x=()) %}{% for i in range(90000) %}{% set a.x = (a.x,) %}{% endfor %}{{ {}.get(a.x) }}",
        "{% set a = namespace(x=3) %}{% for i in range(60) %}{% set a.x = a.x * a.x %}{% endfor %}{{ a.x }}",
        "{{ 3 ** (3 ** 33) }}",
        "{{ 2.5 | round(10 ** 9, 'ceil') }}",
        "{{ ('<i>' * 300000) | striptags }}",
    ],
)
def test_template_that_computes_for_ever_is_refused(source: str) -> None:
    message = refusal(source)
    assert any(words in message for words in ("too long", "too large", "too much", "deep"))


@pytest.mark.parametrize(
    "source",
    [
        sixty("'ab'", "ns.x + ns.x"),
        sixty("'ab'", "ns.x ~ ns.x"),
        sixty("'ab'", "ns.x * 2"),
        sixty("'ab'", "'%s%s' % (ns.x, ns.x)"),
        sixty("'ab'", "'%s%s' | format(ns.x, ns.x)"),
        sixty("'ab'", "'{0}{0}'.format(ns.x)"),
        sixty("'ab'", "[ns.x, ns.x] | join"),
        sixty("'ab'", "ns.x.join([ns.x, ns.x])"),
        sixty("'ab'", "ns.x.replace('a', 'aa')"),
        sixty("'ab'", "ns.x | replace('a', 'aa')"),
        sixty("'ab'", "ns.x.translate({97: 'aa'})"),
        sixty("[1]", "ns.x + ns.x"),
        sixty("[1]", "[ns.x, ns.x] | sum(start=[])"),
        sixty("[1]", "[ns.x, ns.x]"),
        sixty("[1]", "[ns.x, ns.x]", "ns.x | tojson"),
        sixty("[1]", "{'a': ns.x, 'b': ns.x}", "'%s' % ns.x"),
        *(f"{{{{ 'a'.{name}(9999999999) }}}}" for name in ("ljust", "rjust", "center", "zfill")),
        *(
            "{{ '\t'.expandtabs(9999999999) }}",
            "{{ (1).to_bytes(9999999999, 'big') }}",
            "{{ 'a' | center(9999999999) }}",
        ),
        *(
            "{{ 'a\nb' | indent(9999999999) }}",
            "{{ [1] | batch(9999999999, 0) | list }}",
            "{{ '%*d' % (9999999999, 1) }}",
        ),
        *("{{ '%9999999999d' % 1 }}", "{{ '{:9999999999}'.format(1) }}", "{{ '{:{}}'.format(1, 9999999999) }}"),
        *(
            "{{ '%9999999999d' is odd }}",
            "{{ '%9999999999d' is divisibleby 3 }}",
            "{{ messages | tojson(indent=99999999) }}",
        ),
        "{% for i in range(90000) %}" + "text" * 100 + "{% endfor %}",
        "{% set x %}{% for i in range(90000) %}" + "text" * 100 + "{% endfor %}{% endset %}",
        "{% for i in range(90000) %}{% set x = ('ab' * 90000)[1:] %}{% endfor %}",
        "{% autoescape true %}{{ '<' * 10 ** 8 }}{% endautoescape %}",
    ],
)
def test_template_that_makes_too_much_text_is_refused(source: str) -> None:
    message = refusal(source)
    assert any(words in message for words in ("too much text", "too large", "too long"))


def test_numbers_are_no_widths_where_the_format_does_not_ask_for_them() -> None:
    for source in (
        "{{ '%d' % 1700000000000 }}",
        "{{ '{}'.format(1700000000000) }}",
        "{{ '%s' | format(1700000000000) }}",
    ):
        assert ChatTemplate(source, {}, ORIGIN).render(HELLO) == "1700000000000"


def test_text_that_names_a_namespace_does_not_spell_it() -> None:
    source = sixty("''", "namespace(a=ns.x, b=ns.x)", "(ns.x | string) ~ ns")
    assert ChatTemplate(source, {}, ORIGIN).render(HELLO) == "<Namespace><Namespace>"


CHATML = """\
{%- if tools %}{{- '<|im_start|>system\\n' }}{%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
{{- "<|im_end|>\\n" }}{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string
        and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "assistant" %}
        {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}
        {%- if loop.index0 > ns.last_query_index or loop.last %}{{- '<think>' + message.content }}{%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' + content }}
    {%- else %}{{- '<|im_start|>' + message.role + '\\n' + message.content }}{%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
MACROS = """\
{%- macro field(name, schema, depth=0) -%}
{{ '  ' * depth }}{{ name }}: {{ schema.type | default('any', true) | upper }}
{% for key, value in (schema.properties or {}) | dictsort %}{{ field(key, value, depth + 1) }}{% endfor %}
{%- endmacro -%}
{% for tool in tools or [] %}{{ field(tool.name, tool.parameters) }}{% endfor %}
{% set user_messages = messages | selectattr("role", "equalto", "user") | list %}
{% for message in messages if message.role != "system" %}
{% if loop.first or loop.previtem.role != message.role %}[{{ loop.index }}/{{ loop.length }}]{% endif %}
{{ message.role | title }}: {{ "%s" | format(message.content) | trim | replace("\\n", " ") }}
{% if message == user_messages[-1] %}(last){% endif %}{% if loop.index > 99 %}{% break %}{% endif %}
{% endfor %}
{{ messages | map(attribute="role") | unique | join(", ") }} {{ bos_token ~ 1 ~ none ~ [1, "a"] }}
"""


def conversation(turns: int, words: int) -> list[dict[str, str]]:
    content = "\u5f53\u7136 some words of a </think> turn\n " * words
    return [{"role": ("user", "assistant")[index % 2], "content": f"{index}: {content}"} for index in range(turns)]


def plain_jinja(source: str, **values: object) -> str:
    """The same template in Jinja's own sandbox."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    return environment.from_string(source).render(**values)


TOOLS: list[dict[str, Any]] = [
    {"name": "look_up", "parameters": {"type": "object", "properties": {"b": {"type": "string"}, "a": {}}}},
    {"name": "\u5f53", "parameters": {"properties": {"c": {"type": "object", "properties": {"d": {}}}}}},
]


@pytest.mark.parametrize("source", [CHATML, MACROS], ids=["chatml", "macros"])
@pytest.mark.parametrize(("turns", "words"), [(1, 0), (7, 3), (2000, 2), (2, 150_000)])
def test_templates_as_checkpoints_have_them_render_as_in_jinja(source: str, turns: int, words: int) -> None:
    messages = conversation(turns, words)
    rendered = ChatTemplate(source, {"bos_token": "<s>"}, ORIGIN).render(messages, tools=TOOLS)
    values = {"tools": TOOLS, "bos_token": "<s>", "add_generation_prompt": True}
    assert rendered == plain_jinja(source, messages=messages, **values)
