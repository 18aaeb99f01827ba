"""A recursive-descent parser of arithmetic and algebra in LaTeX. It makes nested tuples and computes nothing.

The numbers of tokens, levels and digits are bounded, so that no text can exhaust the parser.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_TOKENS, MAX_DEPTH, MAX_DIGITS, MAX_EXPONENT = 400, 40, 2_000, 4_000
FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh", "coth", "arcsin", "arccos", "arctan", "asin",
    "acos", "atan", "ln", "log", "lg", "exp", "sqrt", "abs", "gcd", "lcm", "max", "min", "floor", "ceil",
}  # fmt: skip
GREEK = {
    "alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota", "kappa",
    "lambda", "mu", "nu", "xi", "rho", "sigma", "tau", "upsilon", "phi", "varphi", "chi", "psi", "omega", "Gamma",
    "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega", "ell",
}  # fmt: skip
TOKEN = re.compile(
    r"\s*(?:(?P<repeating>\d*\.\d*\\overline\{\d+\})|(?P<number>(?:\d+\.\d+|\d+\.?|\.\d+)(?:[eE][+-]?\d+(?![a-zA-Z]))?)"
    r"|(?P<command>\\[a-zA-Z]+|\\\{|\\\})|(?P<word>(?:sqrt|arcsin|arccos|arctan|sin|cos|tan|log|ln|exp|pi)(?![a-zA-Z]))"
    r"|(?P<letter>[a-zA-Z]'*)|(?P<sign>[-+*/^_!(){}\[\]|,]))"
)

Node = tuple  # ("num", Fraction, literal) | ("sym", name) | ("const", name) | (operator, Node, ...)


class Unreadable(ValueError):
    """A text that this parser cannot read."""


class TooBig(ValueError):
    """An expression whose value is too large to compare."""


def parse(text: str) -> Node:
    """Parse one expression. Raises Unreadable, or TooBig for a number with a huge exponent."""
    parser = _Parser(text)
    node = parser.sum(0)
    if parser.peek():
        raise Unreadable(f"{parser.peek()!r} was not expected")
    return node


def symbols(node: Node) -> set[str]:
    """Return the names of the variables, and of unknown functions as "f()"."""
    if node[0] == "sym":
        return {node[1]}
    if node[0] == "apply":
        return {node[1] + "()"} | symbols(node[2])
    return set().union(*(symbols(n) for n in node[1:] if isinstance(n, tuple)))


class _Parser:
    """Grammar: sum > product > unary > power > postfix > atom; juxtaposition multiplies.

    One method per rule. `depth` counts the nesting.
    """

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = []
        self.kinds: list[str] = []
        self.at = 0
        end = 0
        text = text.strip()
        while end < len(text):
            match = TOKEN.match(text, end)
            if match is None or len(self.tokens) >= MAX_TOKENS:
                raise Unreadable(f"{text[end : end + 20]!r}" if match is None else "too long")
            kind = str(match.lastgroup)
            self.tokens.append(match[kind])
            self.kinds.append(kind)
            end = match.end()

    def peek(self, ahead: int = 0) -> str:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else ""

    def kind(self, ahead: int = 0) -> str:
        return self.kinds[self.at + ahead] if self.at + ahead < len(self.tokens) else ""

    def take(self, *expected: str) -> str:
        token = self.peek()
        if not token or (expected and token not in expected):
            raise Unreadable(f"{token!r} instead of {' or '.join(expected) or 'more'}")
        self.at += 1
        return token

    def sum(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        node = self.product(depth)
        while self.peek() in ("+", "-"):
            negative = self.take() == "-"
            right = self.product(depth)
            node = ("add", node, ("neg", right) if negative else right)
        return node

    def product(self, depth: int) -> Node:
        node = self.unary(depth)
        while True:
            if self.peek() in ("*", r"\times", r"\cdot"):
                self.take()
                node = ("mul", node, self.unary(depth))
            elif self.peek() == "/":
                self.take()
                node = ("div", node, self.unary(depth))
            elif self.starts_factor():
                node = self.juxtapose(node, self.power(depth))
            else:
                return node

    def juxtapose(self, left: Node, right: Node) -> Node:
        """Multiply two factors, or read `2\\frac{1}{3}` as a mixed number. Raises Unreadable for two numbers."""
        integer = left[1] if left[0] == "neg" else left
        if integer[0] == "num" and right[0] == "div" and right[1][0] == right[2][0] == "num" and integer[2].isdigit():
            if right[1][1] < right[2][1]:
                mixed = ("add", integer, right)
                return ("neg", mixed) if left[0] == "neg" else mixed
            raise Unreadable("a number beside a fraction")
        if right[0] == "num":
            raise Unreadable("two numbers side by side")
        return ("mul", left, right)

    def starts_factor(self) -> bool:
        token, kind = self.peek(), self.kind()
        if kind in ("letter", "word", "number", "repeating") or token in ("(", "{", "["):
            return True
        return kind == "command" and (
            token[1:] in FUNCTIONS | GREEK | {"frac", "sqrt", "pi", "binom", "infty", "lfloor", "lceil", "text"}
        )

    def unary(self, depth: int) -> Node:
        if self.peek() in ("-", "+"):
            if depth > MAX_DEPTH:
                raise Unreadable("nested too deeply")
            negative = self.take() == "-"
            node = self.unary(depth + 1)
            return ("neg", node) if negative else node
        return self.power(depth)

    def power(self, depth: int) -> Node:
        node = self.postfix(self.atom(depth + 1))
        if self.peek() != "^":
            return node
        self.take()
        if self.peek() == r"\circ":
            self.take()
            return ("mul", node, ("div", ("const", "pi"), ("num", Fraction(180), "180")))
        return self.postfix(("pow", node, self.exponent(depth + 1)))

    def exponent(self, depth: int) -> Node:
        """Parse `{...}`, a number or one sign; a tower of exponents needs no braces."""
        if self.peek() == "-":
            self.take()
            return ("neg", self.exponent(depth + 1))
        if depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        node = self.atom(depth + 1)
        if self.peek() == "^":
            self.take()
            return ("pow", node, self.exponent(depth + 1))
        return node

    def postfix(self, node: Node) -> Node:
        while self.peek() == "!":
            self.take()
            node = ("fact", node)
        return node

    def group(self, depth: int, closing: str) -> Node:
        node = self.sum(depth + 1)
        self.take(closing)
        return node

    def argument(self, depth: int) -> Node:
        """Parse the argument of a command: `{...}`, else one digit or sign (`\\frac12`, `\\sqrt2`)."""
        if self.peek() == "{":
            self.take()
            return self.group(depth, "}")
        if self.kind() == "number" and self.peek().isdigit():
            token = self.tokens[self.at]
            if len(token) > 1:
                self.tokens[self.at] = token[1:]
            else:
                self.at += 1
            return ("num", Fraction(int(token[0])), token[0])
        return self.atom(depth + 1)

    def atom(self, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise Unreadable("nested too deeply")
        kind, token = self.kind(), self.take()
        if kind in ("number", "repeating"):
            return self.number(token, kind)
        if token in ("(", "{", "["):
            return self.group(depth, {"(": ")", "{": "}", "[": "]"}[token])
        if token == "|":
            return ("call", "abs", self.group(depth, "|"))
        if kind == "letter":
            return self.named(token, depth)
        return self.command(token.lstrip("\\"), depth)

    def number(self, token: str, kind: str) -> Node:
        if len(token) > MAX_DIGITS or self.peek() == "_":
            raise Unreadable("a number of another base, or too many digits")
        if kind == "repeating":
            head, tail = token[:-1].split(r"\overline{")
            integer, _, decimals = head.partition(".")
            unit = Fraction(1, 10 ** len(decimals))
            repeat = Fraction(int(tail), 10 ** len(tail) - 1) * unit
            return ("num", Fraction(int((integer + decimals) or 0)) * unit + repeat, token)
        mantissa, _, exponent = token.lower().partition("e")
        if exponent and abs(int(exponent[:12])) > MAX_EXPONENT:
            raise TooBig("exponent")
        return ("num", Fraction(mantissa.rstrip(".")) * Fraction(10) ** int(exponent or 0), token)

    def named(self, token: str, depth: int) -> Node:
        if self.peek() == "_":
            self.take()
            token += "_" + self.subscript()
        if token in ("e", "i"):
            return ("const", token)
        if token[0] in "fgh" and self.peek() == "(":
            self.take()
            return ("apply", token, self.group(depth, ")"))
        return ("sym", token)

    def subscript(self) -> str:
        if self.peek() != "{":
            return self.take()
        parts, level = [], 0
        while True:
            token = self.take()
            level += (token == "{") - (token == "}")
            if level == 0:
                return "".join(parts)
            if token != "{":
                parts.append(token)

    def command(self, name: str, depth: int) -> Node:
        if name in ("pi", "infty"):
            return ("const", name)
        if name == "frac":
            return ("div", self.argument(depth), self.argument(depth))
        if name == "binom":
            return ("binom", self.argument(depth), self.argument(depth))
        if name == "sqrt":
            return self.root(depth)
        if name in ("lfloor", "lceil"):
            return ("call", {"lfloor": "floor", "lceil": "ceil"}[name], self.group(depth, rf"\r{name[1:]}"))
        if name in FUNCTIONS:
            return self.function(name, depth)
        if name in GREEK:
            return self.named(name, depth)
        raise Unreadable(f"{name!r}")

    def root(self, depth: int) -> Node:
        index: Node = ("num", Fraction(2), "2")
        if self.peek() == "[":
            self.take()
            index = self.group(depth, "]")
        return ("call", "root", self.argument(depth), index)

    def function(self, name: str, depth: int) -> Node:
        power = base = None
        if self.peek() == "_" and name == "log":
            self.take()
            base = self.argument(depth)
        if self.peek() == "^":
            self.take()
            power = self.exponent(depth + 1)
        if power == ("neg", ("num", Fraction(1), "1")) and name in ("sin", "cos", "tan"):
            name, power = f"arc{name}", None
        name = {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}.get(name, name)
        if self.peek() in ("(", "["):
            closing = {"(": ")", "[": "]"}[self.take()]
            arguments = [self.sum(depth + 1)]
            while self.peek() == "," and name in ("gcd", "lcm", "max", "min"):
                self.take()
                arguments.append(self.sum(depth + 1))
            self.take(closing)
        else:
            arguments = [self.bare_argument(depth)]
        node: Node = ("call", name, *arguments, *([base] if base else []))
        return ("pow", node, power) if power else node

    def bare_argument(self, depth: int) -> Node:
        """Parse an argument without brackets, as in `\\sin 2x`: up to the next sign, function or bracket."""
        node = self.unary(depth + 1)
        while self.kind() in ("letter", "number") or self.peek() == r"\pi" or self.peek()[1:] in GREEK:
            node = self.juxtapose(node, self.power(depth + 1))
        return node
