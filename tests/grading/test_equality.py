"""When two answers are the same: hand-made pairs of each kind and their near misses."""

import pytest

from rlhf_pg.grading import equality

EQUAL = [
    ("2/3", "0.66666667"), ("2/3", "0.66666666"), ("24", "4!"), ("7", r"7\text{ red apples}"),
    ("1000", r"1\,000"), ("1000", "1,000"), ("1000", "1{,}000"), ("1000", "1 000"), ("42", "４２"), ("42", "042."),
    ("18", r"\$18"), ("50", r"50\%"), (r"28\%", "28"), ("0.5", r"50\%"), ("0.5", r"\frac12"),
    (r"\frac{7}{3}", r"2\frac13"), (r"-\frac{7}{3}", "-7/3"), (r"0.\overline{3}", "1/3"),
    (r"\frac{1}{12}", "0.0833333333333333"), (r"2\sqrt2", r"\sqrt{8}"), (r"\frac{1}{\sqrt2}", r"\frac{\sqrt2}{2}"),
    (r"\frac{3\pi}{4}", r"0.75\pi"), ("10^5", "1e5"), (r"2\times10^{3}", "2000"), ("3-1", "2"), (r"e^{i\pi}", "-1"),
    (r"\log_2 8", "3"), ("5!", "120"), (r"\tan^2 y+1", r"\sec^2 y"), ("(x-1)(x+2)", "x^2+x-2"), ("x=5", "5"),
    ("5", "x = 2+3 = 5"), ("1/3", r"x=1/3\approx 0.33"), (r"5\text{ cm}", "5"), (r"5\text{ cm}", "5 cm"),
    (r"90^\circ", "90"), (r"3\text{ million}", "3000000"), ("(1,2)", r"\left(1, 2\right)"), ("(1,2)", "(x,y)=(1,2)"),
    (r"\{1,2\}", "2, 1"), ("1,2", r"x=1\text{ or }x=2"), (r"1\pm\sqrt2", r"1+\sqrt2, 1-\sqrt2"),
    ("[0,1)", r"x\in[0,1)"), (r"0 \le x < 1", "[0,1)"), ("x>2", r"(2,\infty)"), ("x<1", "-x>-1"),
    (r"(-\infty,0)\cup(1,2]", r"(1,2]\cup(-\infty,0)"), ("2x+4y=6", "x+2y-3=0"), ("y=2x+1", "2x+1"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{bmatrix}1.0 & 2\\ 3 & 4\end{bmatrix}"), ("3:4", "3 : 4"),
    (r"\text{Monday}", "monday"), (r"\text{(C)}", "C"), ("2+3i", "3i+2"), ("204_5", "204_{5}"),
    (r"\mathbb{R}", r"(-\infty,\infty)"), (r"\sum_{k=1}^n k", r"\frac{n(n+1)}{2}"), ("12:00", "12:00"),
    (r"\sqrt[3]{x}^2", "x^{2/3}"),
]  # fmt: skip
DIFFERENT = [
    (r"x\in[1,2]", r"y\in[1,2]"), ("12", "1 2"), ("7", r"7\text{ at least}"),
    ("1/3", "0.33333334"), ("1/3", "0.33333332"), ("x^2", "x^2+C"),
    ("42", "-42"), ("42", "420"), ("42", "42.0001"), ("42", "42=42"), ("42", "42x"), ("42", r"\{41,42\}"),
    ("42", "42, 43"), ("42", r"\pm 42"), ("42", "?"), ("42", "x"), ("42", r"\infty"), ("42", r"42\text{ or }43"),
    ("42", r"\text{not }42"), ("42", "42_{7}"), ("42", r"42\text{ million}"),
    ("123456789012345678", "123456789012345679"), ("32349", "32, 349"), (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}"), ("1e-7", "2e-7"), ("e^{-200}", "e^{-201}"),
    ("2^{2008}+1", "2^{2008}+i"), (r"10^{-50}\sqrt2", "0"), ("4", r"4\sqrt2"), (r"\sqrt2", "1.4142"),
    ("1/3", "0.333"), (r"\pi", "3.14"), (r"\sqrt{x^2}", "x"), ("0.5", r"0.5\%"), ("4210_7", "4210_8"),
    ("204_5", "204"), (r"5\text{ cm}", r"5\text{ km}"), (r"5\text{ cm}^2", r"5\text{ cm}^3"),
    (r"5\text{ dollars}", r"5\text{ cents}"), ("x=2", "y=3"), ("x=2", "y=2"), ("(1,2)", "[1,2]"), ("[0,1)", "[0,1]"),
    ("(1,2)", "(2,1)"), ("(1,2)", r"\{1,2\}"), ("1,2", "1,2,3"), ("1,2,3", "1,2"), (r"\pm3", "3"), ("1,1,2", "1,2"),
    ("x>5", "x<5"), ("x>5", r"x\geq5"), ("x<1", "x>-1"), ("2x+z=1", "1"), ("3x-y+13=0", "3x+4y+14=0"),
    ("x+y=1", "0=0"), ("y=2x", "y=y"),
    (r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\begin{pmatrix}1&2\\3&5\end{pmatrix}"), ("12:00", "1:00"),
    ("3:4", "4:3"), (r"\text{Monday}", r"\text{Tuesday}"), ("A", "B"), ("2+3i", "2-3i"), (r"\sin x", r"\cos x"),
    ("f(x)", "f(y)"), ("55", r"\sum_{n=1}^{9}n"), ("58,500", "500, 58"), (r"3:30 \text{ p.m.}", r"3:30 \text{ a.m.}"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_equal_answers_are_accepted(gold, answer):
    assert equality.equal(gold, answer)


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_near_misses_are_rejected(gold, answer):
    assert not equality.equal(gold, answer)
