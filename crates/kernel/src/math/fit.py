#!/usr/bin/env python3
"""Prints coefficients.rs: minimax polynomials (Remez exchange, mpmath) for the functions of this folder. Run it by hand; it needs mpmath."""

import struct
import mpmath as mp

mp.mp.dps = 50


def remez(f, w, lo, hi, degree, rounds=12):
    """Coefficients (constant first) of the polynomial with the least max |w (f - p)| on [lo, hi]."""
    n = degree + 2
    lo, hi = mp.mpf(lo), mp.mpf(hi)
    at = lambda t: (lo + hi) / 2 - (hi - lo) / 2 * mp.cos(t)
    nodes = [at(mp.pi * (i + mp.mpf(1) / 2) / n) for i in range(n)]
    grid = [at(mp.pi * (i + mp.mpf(1) / 2) / (24 * n)) for i in range(24 * n)]
    values = [(x, f(x), w(x)) for x in grid]
    best = None
    for _ in range(rounds):
        rows = mp.matrix(n, n)
        right = mp.matrix(n, 1)
        for i, x in enumerate(nodes):
            for j in range(degree + 1):
                rows[i, j] = x**j
            rows[i, degree + 1] = (-1) ** i / w(x)
            right[i] = f(x)
        c = mp.lu_solve(rows, right)
        c = [c[j] for j in range(degree + 1)]
        error = [(e_w * (y - mp.polyval(c[::-1], x)), x) for x, y, e_w in values]
        worst = max(abs(e) for e, _ in error)
        if best is None or worst < best[0]:
            best = (worst, c)
        # The largest error of each run of one sign.
        picked = []
        for e, x in error:
            if picked and (picked[-1][0] > 0) == (e > 0):
                if abs(e) > abs(picked[-1][0]):
                    picked[-1] = (e, x)
            else:
                picked.append((e, x))
        while len(picked) > n:
            picked.pop(0 if abs(picked[0][0]) < abs(picked[-1][0]) else -1)
        if len(picked) < n:
            break
        nodes = [x for _, x in picked]
    return best


def show(name, doc, result, single):
    worst, c = result
    print(f"/// {doc} Error 2^{float(mp.log(worst, 2)):.1f}.")
    values = []
    for v in c:
        v = float(v)
        if single:
            v = struct.unpack("f", struct.pack("f", v))[0]
        values.append(repr(v))
    print(f"pub const {name}: [f64; {len(c)}] = [")
    for v in values:
        print(f"    {v},")
    print("];")


def series(f, x, cut, terms):
    """f away from zero, its Taylor sum near zero."""
    return f(x) if abs(x) > cut else terms(x)


half = mp.log(2) / 2 * mp.mpf("1.002")
exp2 = lambda r: series(lambda r: (mp.exp(r) - 1 - r) / r**2, r, mp.mpf("1e-8"), lambda r: mp.mpf(1) / 2 + r / 6 + r**2 / 24)
log3 = lambda f: series(lambda f: (mp.log1p(f) - f + f**2 / 2) / f**3, f, mp.mpf("1e-8"), lambda f: mp.mpf(1) / 3 - f / 4 + f**2 / 5)


def of_square(f, terms):
    """f(sqrt z) with its Taylor sum near zero."""
    return lambda z: f(mp.sqrt(z)) if z > mp.mpf("1e-16") else terms(z)


sin3 = of_square(lambda r: (mp.sin(r) / r - 1) / r**2, lambda z: -mp.mpf(1) / 6 + z / 120)
cos4 = of_square(lambda r: (mp.cos(r) - 1 + r**2 / 2) / r**4, lambda z: mp.mpf(1) / 24 - z / 720)
atan3 = of_square(lambda t: (mp.atan(t) / t - 1) / t**2, lambda z: -mp.mpf(1) / 3 + z / 5)
asin3 = of_square(lambda t: (mp.asin(t) / t - 1) / t**2, lambda z: mp.mpf(1) / 6 + 3 * z / 40)
erf1 = of_square(lambda t: mp.erf(t) / t - 1, lambda z: 2 / mp.sqrt(mp.pi) * (1 - z / 3) - 1)
# log((1 + s) / (1 - s)) = 2 s + 2 s z (1/3 + z/5 + ...), z = s^2
log_s = of_square(lambda s: (mp.log((1 + s) / (1 - s)) / s - 2) / s**2, lambda z: mp.mpf(2) / 3 + 2 * z / 5)
quarter = (mp.pi / 4 * mp.mpf("1.001")) ** 2
s_max = ((mp.sqrt(2) - 1) / (mp.sqrt(2) + 1)) ** 2 * mp.mpf("1.001")

print("//! Coefficients of minimax polynomials, constant first. Written by `fit.py`.\n")
print("#![allow(clippy::excessive_precision, clippy::approx_constant, reason = \"printed by a program\")]\n")
one = lambda _: mp.mpf(1)
show("EXP_F32", "`(e^r - 1 - r) / r^2` for `|r| <= ln 2 / 2`, relative to `e^r`.", remez(exp2, lambda r: r * r + mp.mpf("1e-4"), -half, half, 4), True)
show("EXPM1_F32", "The same, relative to `e^r - 1`.", remez(exp2, lambda r: abs(r) + mp.mpf("1e-3"), -half, half, 5), True)
show("EXP_F64", "The same for f64.", remez(exp2, lambda r: abs(r) + mp.mpf("1e-3"), -half, half, 10), False)
r2 = mp.sqrt(2)
show("LOG_F32", "`(ln(1 + f) - f + f^2 / 2) / f^3` for `1 + f` from `sqrt(1/2)` to `sqrt(2)`, relative to the logarithm.", remez(log3, lambda f: f * f + mp.mpf("1e-4"), 1 / r2 - 1 - mp.mpf("0.003"), r2 - 1 + mp.mpf("0.003"), 8), True)
show("LOG_F64", "`(ln((1 + s) / (1 - s)) / s - 2) / s^2` as a polynomial in `s^2`.", remez(log_s, lambda z: z, mp.mpf("1e-9"), s_max, 6), False)
show("SIN", "`(sin(r) / r - 1) / r^2` as a polynomial in `r^2`, `|r| <= pi / 4`.", remez(sin3, lambda z: z + mp.mpf("1e-3"), 0, quarter, 5), False)
show("COS", "`(cos(r) - 1 + r^2 / 2) / r^4` as a polynomial in `r^2`.", remez(cos4, lambda z: z * z + mp.mpf("1e-3"), 0, quarter, 5), False)
show("SIN_F32", "`SIN` for results of f32.", remez(sin3, lambda z: z + mp.mpf("1e-3"), 0, quarter, 2), False)
show("COS_F32", "`COS` for results of f32.", remez(cos4, lambda z: z * z + mp.mpf("1e-3"), 0, quarter, 2), False)
show("ATAN", "`(atan(t) / t - 1) / t^2` as a polynomial in `t^2`, `|t| <= 7/16`.", remez(atan3, lambda z: z + mp.mpf("1e-3"), 0, (mp.mpf(7) / 16) ** 2 * mp.mpf("1.001"), 10), False)
show("ASIN", "`(asin(t) / t - 1) / t^2` as a polynomial in `t^2`, `|t| <= 1/2`.", remez(asin3, lambda z: z + mp.mpf("1e-3"), 0, mp.mpf("0.2502"), 12), False)
show("ERF_F32", "`erf(t) / t - 1` as a polynomial in `t^2`, `|t| <= 0.93`.", remez(erf1, lambda z: mp.mpf("0.9"), 0, mp.mpf("0.93") ** 2, 6), True)
show("ERF_F64", "The same for `|t| <= 1`, in f64.", remez(erf1, lambda z: mp.mpf("0.9"), 0, 1, 11), False)
show("ERFC_LOG_F32", "`-ln(erfc(t)) / t - 1`, `0.93 <= t <= 4`, weighted as the error function is.", remez(lambda t: -mp.log(mp.erfc(t)) / t - 1, lambda t: t * mp.erfc(t) / mp.erf(t), mp.mpf("0.925"), mp.mpf("3.95"), 6), True)
to_t = lambda w: 2 * (1 + w) / (1 - w)
erfcx = lambda t: mp.exp(t * t) * mp.erfc(t)
show("ERFCX_F64", "`e^(t^2) erfc(t)` as a polynomial in `(t - 2) / (t + 2)`, `1 <= t <= 6`, weighted as the error function is.", remez(lambda w: erfcx(to_t(w)), lambda w: mp.exp(-to_t(w) ** 2), mp.mpf(-1) / 3 - mp.mpf("0.001"), mp.mpf("0.5"), 12), False)
