"""The environment in which chat templates run: Jinja's immutable sandbox, in which all that they do is paid for.

Jinja's sandbox keeps a template from the machine, not from its time and memory. `chat_budget` counts both. Work that
the sandbox does not see, such as rounds of a loop, is made visible: a pass over the parsed template wraps it in filters
whose names no template can spell.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sized
from typing import Any

from jinja2 import Template, meta, nodes, pass_context
from jinja2.exceptions import TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from .chat_budget import STEP, look_at, look_into, make, spend
from .chat_growth import growth, is_shallow

_ROUND, _LOOKED_AT, _SHOWN, _SLICED = "a round", "looked at", "put out", "sliced"
_FILTER, _CALL, _NODE = 8 * STEP, 4 * STEP, STEP // 2
_LIST_ITEM = 16
"""Characters that one item of a list counts as."""
_MOST_SOURCE, _MOST_NODES = 1 << 18, 1 << 14
_MOST_BITS = 1 << 16
_COMPARISONS = ["==", "eq", "equalto", "!=", "ne", "<", "lt", "lessthan", ">", "gt", "greaterthan"]
_COMPARISONS += ["<=", "le", ">=", "ge", "in"]
_REMAINDERS = ["divisibleby", "even", "odd"]
"""Tests that apply `%` to their value, which makes text of text."""
_LEFT_OUT_FILTERS = ("urlize",)
"""Its expressions take the square of a text's length, and it writes HTML."""
_LEFT_OUT_GLOBALS = ("lipsum",)


class _Generation(Extension):
    """`{% generation %}`, with which templates mark what a training learns from. Here it is only a block."""

    tags = {"generation"}  # noqa: RUF012 -- Jinja's own declaration

    def parse(self, parser: Parser) -> nodes.Node:
        """Read the block up to `{% endgeneration %}`. What is set inside stays inside, as in a call block."""
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class ChatSandbox(ImmutableSandboxedEnvironment):
    """Jinja as chat templates know it. Compile and render within `chat_budget.budget_for`."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation], finalize=_shown)
        # The same filters, to be called once they are paid for.
        self._plain = ImmutableSandboxedEnvironment()
        for name in _LEFT_OUT_FILTERS:
            del self.filters[name]
        for name in _LEFT_OUT_GLOBALS:
            del self.globals[name]
        self.globals["namespace"] = _PlainNamespace
        self.filters = {name: self._paid(name) for name in self.filters} | {
            _ROUND: _round,
            _LOOKED_AT: _looked_at,
            _SHOWN: _shown,
            _SLICED: _sliced,
        }
        for name in _COMPARISONS:
            self.tests[name] = _paid_comparison(self.tests[name])
        for name in _REMAINDERS:
            self.tests[name] = _paid_remainder(self.tests[name])

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Let templates use a filter, in place of Jinja's own of this name."""
        self._plain.filters[name] = function
        self.filters[name] = self._paid(name)

    def compiled(self, source: str) -> Template:
        """Compile a template. Raises: what Jinja and Python's compiler raise for a bad one."""
        if len(source) > _MOST_SOURCE:
            raise TemplateRuntimeError(f"it has {len(source)} characters, at most {_MOST_SOURCE} are read")
        with warnings.catch_warnings():
            # Python's compiler and Jinja's lexer warn of code that a template wrote.
            warnings.simplefilter("ignore")
            tree = self.parse(source)
            size = sum(1 for _ in tree.find_all(nodes.Node))
            if size > _MOST_NODES:
                raise TemplateRuntimeError(f"it has {size} expressions and statements, at most {_MOST_NODES} are taken")
            _pay_for_all(tree)
            tree.set_environment(self)
            return Template.from_code(self, self.compile(tree), self.make_globals(None))

    def variables(self, source: str) -> frozenset[str]:
        """The names that a template which compiles reads from outside."""
        return frozenset(meta.find_undeclared_variables(self.parse(source)))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator once its result is paid for."""
        _pay_for_result(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function once it is paid for."""
        spend(_CALL)
        if isinstance(function, Macro | LoopContext):
            return super().call(context, function, *args, **kwargs)
        method = getattr(function, "__wrapped__", function)
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str | bytes | int | list | tuple | dict):
            args = (*_listed(args[:1], method.__name__), *args[1:])
            _pay(method.__name__, owner, (*args, *kwargs.values()))
        else:
            look_at((args, kwargs))
        return _charged(super().call(context, function, *args, **kwargs))

    def _paid(self, name: str) -> Callable[..., Any]:
        """A filter that is paid for. It may be called by its name only."""

        @pass_context
        def run(context: Context, *args: Any, **kwargs: Any) -> Any:
            spend(_FILTER)
            if args:
                args = (*_listed(args[:1], name), *args[1:])
                _pay(name, args[0], (*args[1:], *kwargs.values()))
            values = (args[0] if args else None, args[1:], kwargs)
            return _charged(self._plain.call_filter(name, *values, context=context, eval_ctx=context.eval_ctx))

        return run


class _PlainNamespace(Namespace):
    """A namespace that may hold itself: its text does not say what it holds."""

    def __repr__(self) -> str:
        return "<Namespace>"


def _pay(name: str, value: Any, args: tuple[Any, ...]) -> None:
    size = 0 if is_shallow(name, value) else look_at(value)
    args_size, numbers = look_into(args)
    make(growth(name, value, args, size=size, args_size=args_size, numbers=numbers))


def _listed(values: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    """What is joined as a list, so that its length is known."""
    if name != "join":
        return values
    return tuple(list(value) if isinstance(value, Iterator) else value for value in values)


def _charged(result: Any) -> Any:
    """A result once its memory is paid for; an iterator pays for each item when it comes."""
    if isinstance(result, Iterator) and not isinstance(result, LoopContext):
        return _counted(result)
    if isinstance(result, str | bytes):
        make(len(result))
    elif isinstance(result, list | tuple | dict):
        make(_LIST_ITEM * len(result))
    return result


def _counted(items: Iterator[Any]) -> Iterator[Any]:
    for item in items:
        spend(STEP)
        look_at(item)
        yield item


def _pay_for_result(operator: str, left: Any, right: Any) -> None:
    if operator == "%" and isinstance(left, str | bytes):
        _pay("format", left, (right,))
        return
    times = [side for side in (left, right) if isinstance(side, int)]
    bits = sum(side.bit_length() for side in times)
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * max(right, 0)
    if bits > _MOST_BITS:
        raise TemplateRuntimeError("it computes numbers that are too large")
    size = _memory(left) + _memory(right)
    make(size * abs(times[0]) if operator == "*" and len(times) == 1 else size)


def _memory(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    return _LIST_ITEM * len(value) if isinstance(value, Sized) else 0


def _paid_comparison(test: Any) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        look_at(args)
        return test(*args)

    return run


def _paid_remainder(test: Any) -> Callable[..., Any]:
    def run(value: Any, *divisor: Any) -> Any:
        _pay_for_result("%", value, divisor[0] if divisor else 2)
        return test(value, *divisor)

    return run


@pass_context
def _round(context: Context, cost: tuple[int, int]) -> bool:
    spend(cost[0])
    make(cost[1])
    return True


@pass_context
def _looked_at(context: Context, value: Any) -> Any:
    look_at(value)
    return value


@pass_context
def _shown(context: Context, value: Any) -> Any:
    make(look_at(value))
    return value


@pass_context
def _sliced(context: Context, value: Any) -> Any:
    make(_memory(value))
    return value


def _pay_for_all(tree: nodes.Template) -> None:
    """Wrap what the sandbox does not see: rounds of loops and macros, comparisons, keys, slices, and `~`."""
    # All prices first: what is added costs nothing.
    filtered = [(loop, _charge(loop.test)) for loop in tree.find_all(nodes.For) if loop.test is not None]
    run_often: list[nodes.For | nodes.Macro | nodes.CallBlock | nodes.Block] = [
        *tree.find_all(nodes.For),
        *tree.find_all(nodes.Macro),
        *tree.find_all(nodes.CallBlock),
        *tree.find_all(nodes.Block),
    ]
    bodies = [(each.body, _charge(each)) for each in run_often]
    for loop, charge in filtered:
        loop.test = nodes.And(charge, loop.test, lineno=loop.lineno)
    for body, charge in bodies:
        body.insert(0, nodes.ExprStmt(charge, lineno=charge.lineno))
    for comparison in list(tree.find_all(nodes.Compare)):
        comparison.expr = _wrapped(comparison.expr, _LOOKED_AT)
    for operand in list(tree.find_all(nodes.Operand)):
        operand.expr = _wrapped(operand.expr, _LOOKED_AT)
    for pair in list(tree.find_all(nodes.Pair)):
        pair.key = _wrapped(pair.key, _LOOKED_AT)
    for concat in list(tree.find_all(nodes.Concat)):
        concat.nodes = [_wrapped(part, _SHOWN) for part in concat.nodes]
    for item in list(tree.find_all(nodes.Getitem)):
        if isinstance(item.arg, nodes.Slice):
            item.node = _wrapped(item.node, _SLICED)
        else:
            item.arg = _wrapped(item.arg, _LOOKED_AT)


def _charge(node: nodes.Node) -> nodes.Filter:
    """The expression that pays for running a node once."""
    texts = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
    work = STEP + _NODE * sum(1 for _ in node.find_all(nodes.Node))
    return _filter(nodes.Const((work, texts), lineno=node.lineno), _ROUND)


def _wrapped(node: nodes.Expr, name: str) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _filter(node, name)


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
