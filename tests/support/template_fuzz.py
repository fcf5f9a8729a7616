"""Random chat templates: from a grammar of all that Jinja has, with the numbers and names that break things."""

from __future__ import annotations

import random

_NAMES = (
    "messages",
    "message",
    "tools",
    "bos_token",
    "ns",
    "x",
    "i",
    "loop",
    "f",
    "missing",
    "namespace",
    "range",
    "self",
)
_NUMBERS = ("0", "1", "-1", "2.5", "7", "64", "1000", "99999", "10000000000", "1e308", "9" * 40)
_TEXTS = ("''", "'a'", "'role'", "'content'", "'%s %d'", "'%9999999999d'", "'{} {0}'", "'{:999999999}'", "'\\x1b[31m'")
_TEXTS += ("'\\ud800'", "'a.b.c'", "'<b>&'", "'\\n\\t'")
_FILTER_NAMES = (
    "abs attr batch capitalize center count default dictsort e escape filesizeformat first float format groupby"
    " indent int items join last length list lower map max min pprint random reject rejectattr replace reverse round"
    " safe select selectattr slice sort string striptags sum title tojson trim truncate unique upper urlencode"
    " wordcount wordwrap xmlattr"
)
_METHOD_NAMES = (
    "append count encode expandtabs format format_map get index items join keys ljust lower pop replace rjust"
    " rsplit split splitlines startswith strip to_bytes translate update upper values zfill center next __class__ mro"
)
_FILTERS, _METHODS = tuple(_FILTER_NAMES.split()), tuple(_METHOD_NAMES.split())
_TESTS = ("defined", "none", "string", "mapping", "iterable", "sequence", "number", "odd", "divisibleby(0)", "in x")
_TESTS += ("eq(x)", "sameas(x)", "callable", "filter", "lt(1)")
_OPERATORS = ("+", "-", "*", "/", "//", "%", "**", "~", "==", "!=", "<", ">=", "in", "not in", "and", "or")
_SIXTY = "{{% for i in range(60) %}}{{% set ns.x = {} %}}{{% set ns.y = ns.x %}}{{% endfor %}}{{{{ {} }}}}"
_PRELUDE = "{% set ns = namespace(x=[1], y='a') %}{% set x = 'text' %}{% set i = 3 %}{% set message = messages[0] %}"
_PRELUDE += "{% macro f(x, i=1) %}{{ x }}{% endmacro %}{% macro h(x) %}{{ caller(x) }}{% endmacro %}"
_RARE = (
    "{% include 'x' %}",
    "{% extends x %}",
    "{% import x as y %}",
    "{% break %}",
    "{% set loop = 1 %}",
    "{% nope %}",
)
_RARE += ("{{ x is nope }}", "{% block b %}{{ self.b() }}{% endblock %}", "{# x #}", "{% continue %}", "{{ x | nope }}")
_FITTING = (
    *("({} | string | center({}))", "({} ~ {} ~ {})", "({} | string | indent({}))", "([{}] * 3) | batch(4, {}) | list"),
    *(
        "({0} | string | replace('a', {2}))",
        "({0} | string).split({2} or 'a')",
        "({0} | string).rjust({1})",
        "{0} | tojson",
    ),
    *("[{}, {}, {}] | join(', ')", "({0} | string) * 3", "({0}, {0}) == ({0}, {2})", "({0} | string | list)[1:]"),
    *(
        "{0} is defined",
        "{0} is string",
        "({0} | default({2}))",
        "'%s %s' % ({0}, {1})",
        "'{{}} {{}}'.format({0}, {2})",
    ),
    *("({0} | string | upper | trim | title)", "([{0}, 1] | first)", "{{'a': {0}}}", "f({0})", "(1 if {0} else {2})"),
)
"""Expressions of any value, a number and a text that most often have a value."""
_DEEPEST = 3

_REAL = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + message['content'] | trim }}"
    "\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}",
    "{%- set ns = namespace(first=true, system='') -%}{%- for m in messages if m.role == 'system' -%}"
    "{%- set ns.system = ns.system ~ m.content -%}{%- endfor -%}{{ ns.system }}{% for m in messages %}"
    "{% if loop.first or loop.previtem.role != m.role %}[{{ loop.index }}/{{ loop.length }}]{% endif %}{{ m | tojson }}"
    "{% if not loop.last %}{% continue %}{% endif %}{% break %}{% endfor %}",
    "{% macro show(tool, depth=0) %}{{ tool | tojson(indent=2) | indent(depth) }}{% endmacro %}{% for t in tools %}"
    "{{ show(t, depth=loop.index0) }}{% endfor %}{{ strftime_now('%Y') | length }}",
)


def random_template(chance: random.Random) -> str:
    """Source of a template, from the grammar, or a real one cut up."""
    match chance.randrange(8):
        case 0:
            return _cut_up(chance, chance.choice(_REAL))
        case 1 if chance.random() < 0.3:
            deep = chance.choice([50, 300, 3000])
            opening, closing = chance.choice(
                [("(", ")"), ("[", "]"), ("-", ""), ("not ", ""), ("{1:", "}"), ("x if ", "")]
            )
            return "{{ " + opening * deep + "1" + closing * deep + " }}"
        case _:
            return _PRELUDE + "".join(_statement(chance, 0) for _ in range(chance.randint(1, 3)))


def _cut_up(chance: random.Random, source: str) -> str:
    """A real template with a piece taken out, doubled, or put elsewhere."""
    for _ in range(chance.randint(1, 3)):
        start, end = sorted(chance.randrange(len(source) + 1) for _ in range(2))
        to = chance.randrange(len(source) + 1)
        source = chance.choice([source[:start] + source[end:], source[:to] + source[start:end] + source[to:]]) or "x"
    return source


def _statement(chance: random.Random, depth: int) -> str:
    if depth >= _DEEPEST:
        return "{{ " + _expression(chance, depth) + " }}"
    body = "".join(_statement(chance, depth + 1) for _ in range(chance.randint(1, 2)))
    one, two = _expression(chance, depth + 1), _expression(chance, depth + 1)
    if chance.random() < 0.03:
        return chance.choice((*_RARE, f"{{{{ raise_exception({one}) }}}}{{{{ strftime_now({two}) }}}}"))
    name = chance.choice(("x", "i", "message", "ns.x", "ns.y"))
    return chance.choice(
        (
            f"{{{{ {one} }}}}",
            f"{{% for i in {one} %}}{body}{{% endfor %}}",
            f"{{% for i in range({chance.choice(_NUMBERS)}) %}}{{% set ns.x = {two} %}}{body}{{% endfor %}}",
            _SIXTY.format("[ns.x, ns.x]", one),
            _SIXTY.format(f"ns.x {chance.choice(_OPERATORS)} ns.x", one),
            f"{{% for i in {one} if {two} recursive %}}{body}{{{{ loop(i) }}}}{{% else %}}{body}{{% endfor %}}",
            f"{{% if {one} %}}{body}{{% elif {two} %}}{body}{{% else %}}x{{% endif %}}",
            f"{{% set {name} = {one} %}}{body}",
            f"{{% set {name.replace('ns.', '')} %}}{body}{{% endset %}}",
            f"{{% macro g(x, i={one}) %}}{body}{{{{ f({two}) }}}}{{% endmacro %}}{{{{ g({two}) }}}}",
            f"{{% call(x) h({one}) %}}{body}{{% endcall %}}",
            f"{{% filter {chance.choice(_FILTERS)} %}}{body}{{% endfilter %}}",
            f"{{% with x = {one} %}}{body}{{% endwith %}}",
            f"{{% autoescape true %}}{body}{{% endautoescape %}}",
        )
    )


def _expression(chance: random.Random, depth: int) -> str:
    if depth >= _DEEPEST + 2:
        return chance.choice((chance.choice(_NAMES), chance.choice(_NUMBERS), chance.choice(_TEXTS)))
    if chance.random() < 0.4:
        return chance.choice(("x", "i", "messages", "message.content", "tools", "ns.x", "ns.y", *_TEXTS[:6]))
    one, two, three = (_expression(chance, depth + chance.randint(1, 3)) for _ in range(3))
    if chance.random() < 0.5:
        return chance.choice(_FITTING).format(one, chance.choice(_NUMBERS), chance.choice(_TEXTS))
    return chance.choice(
        (
            *(chance.choice(_NAMES), chance.choice(_NAMES), chance.choice(_TEXTS), "ns.x", "ns.y"),
            f"({one} {chance.choice(_OPERATORS)} {two})",
            f"{one} | {chance.choice(_FILTERS)}",
            f"({one}) | {chance.choice(_FILTERS)}({two}, {three})",
            f"({one}) | map('{chance.choice(_FILTERS)}', {two}) | list",
            f"({one}).{chance.choice(_METHODS)}({two})",
            f"({one}).{chance.choice(_METHODS)}({two}, {three})",
            f"({one}) is {chance.choice(_TESTS)}",
            f"({one})[{two}]",
            f"({one})[{two}:{three}]",
            f"[{one}, {two}]",
            f"({one}, {two})",
            f"{{{one}: {two}}}",
            f"({one} if {two} else {three})",
            f"f({one})",
            f"range({one})",
            f"cycler({one}, {two}).next()",
            f"dict(a={one})",
        )
    )
