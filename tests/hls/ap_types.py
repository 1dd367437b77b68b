"""The types of infc_hls.h beside the vendor's (ap_types of the hls4ml wheel): random programs over both must print the same.

usage: ap_types.py INFC_HLS_FOLDER VENDOR_FOLDER [PAIRS [SEED]]

Each case is a pair of types with widths of 1 to 64 bits, and some conversions to types of every rounding and overflow mode. The program is
compiled once with our header and once with the vendor's; it runs the same values (random ones and the edges) through both. Divisors are positive:
the vendor's simulation is wrong for quotients of mixed signs and for the least number by -1.
"""

import pathlib
import random
import subprocess
import sys
import tempfile

ROUND = ["AP_RND", "AP_RND_ZERO", "AP_RND_MIN_INF", "AP_RND_INF", "AP_RND_CONV", "AP_TRN", "AP_TRN_ZERO"]
OVERFLOW = ["AP_SAT", "AP_SAT_ZERO", "AP_SAT_SYM", "AP_WRAP"]
VALUES = 60
PER_FILE = 25

HEAD = r"""
#ifdef OURS
#include "infc_hls.h"
#else
#include "ap_fixed.h"
#include "ap_int.h"
#endif
#include <cstdint>
#include <cstdio>
static uint64_t state;
static uint64_t draw() { state ^= state << 13; state ^= state >> 7; state ^= state << 17; return state * 0x2545f4914f6cdd1dull; }
/* Edges, and numbers whose low or high bits are alike. */
static uint64_t value(int k) {
    const uint64_t edges[] = {0, 1, ~0ull, 1ull << 63, ~(1ull << 63), 0x5555555555555555ull, 2, ~1ull};
    if (k < 8) return edges[k];
    const uint64_t v = draw(), n = draw() % 64;
    switch (k % 4) {
    case 0: return v;
    case 1: return v >> n;
    case 2: return ~(v >> n);
    default: return v << n;
    }
}
template <typename T> static T make(uint64_t bits) { T x; x = 0; x.range(x.length() - 1, 0) = bits; return x; }
/* All bits of a result, 64 at a time, and its width. */
template <typename T> static void show(const T &x) {
    T y = x;
    const int w = y.length();
    unsigned long long low = (unsigned long long)(uint64_t)y.range(w > 64 ? 63 : w - 1, 0), high = 0;
    if (w > 64) high = (unsigned long long)(uint64_t)y.range(w - 1, 64);
    std::printf(" %d:%llx.%llx", w, high, low);
}
"""


class Type:
    def __init__(self, rng, kind=None):
        self.kind = kind or rng.choice(["ap_fixed", "ap_ufixed", "ap_int", "ap_uint"])
        self.w = rng.choice([rng.randint(1, 64), rng.randint(1, 16)])
        if "fixed" in self.kind:
            self.i = rng.choice([rng.randint(0, self.w), rng.randint(0, self.w), rng.randint(-8, self.w + 8)])
            self.q, self.o = rng.choice(ROUND), rng.choice(OVERFLOW)
            self.text = f"{self.kind}<{self.w}, {self.i}, {self.q}, {self.o}>"
        else:
            self.i = self.w
            self.text = f"{self.kind}<{self.w}>"

    signed = property(lambda s: s.kind in ("ap_fixed", "ap_int"))
    f = property(lambda s: s.w - s.i)


def body(rng, number, q, o):
    a, b = Type(rng), Type(rng)
    # Operands of sums are aligned: results of more than 128 bits are not needed.
    for _ in range(1000):
        if max(a.i, b.i) + 2 + max(a.f, b.f) <= 120:
            break
        b = Type(rng)
    lines = [f"static void case_{number}() {{", f'    std::printf("case {number} {a.text} {b.text}\\n");']
    lines += [f"    state = {rng.getrandbits(63) | 1}ull;", f"    for (int k = 0; k < {VALUES}; k++) {{"]
    lines += [f"        typedef {a.text} A;", f"        typedef {b.text} B;", "        const A a = make<A>(value(k));", "        const B b = make<B>(value((k * 7) % 61));"]
    lines += ['        std::printf("%d", k);']
    lines += [f"        show({e});" for e in ("a + b", "a - b", "a * b")]
    if (a.kind, a.w) != ("ap_int", 1):  # -a has 3 bits there
        lines.append("        show(-a);")
    if a.i == a.w and b.i == b.w and "fixed" not in a.kind + b.kind:
        if a.signed == b.signed:
            lines.append("        if (b > 0) { show(a / b); show(a % b); }")
        lines += [f"        show({e});" for e in ("a & b", "a | b", "a ^ b", "~a")]
    elif a.signed == b.signed and a.w + max(b.f, 0) + 2 < 100 and a.w < 60 and b.w < 60:
        lines.append("        if (b > 0) show(a / b);")
    if a.i >= 1 and a.i <= a.w:
        lines.append('        std::printf(" %d %lld %.17g %.9g", (int)a.to_int(), (long long)a.to_int64(), a.to_double(), (double)a.to_double());')
    shift = rng.randint(0, a.w - 1)
    lines += [f"        show(a << {shift}); show(a >> {shift});"]
    if a.signed == b.signed:
        lines.append('        std::printf(" %d%d%d%d%d%d", a < b, a <= b, a > b, a >= b, a == b, a != b);')
    low = rng.randint(0, a.w - 1)
    high = rng.randint(low, a.w - 1)
    lines += [f"        {{ A c = a; c.range({high}, {low}) = value(k + 1); show(c); c[{low}] = (k & 1) != 0; show(c); std::printf(\" %d\", (int)(bool)c[{high}]); }}"]
    # Conversions to a type of this mode that is nearby, and of others at random.
    for mode_q, mode_o in [(q, o), (rng.choice(ROUND), rng.choice(OVERFLOW)), (rng.choice(ROUND), rng.choice(OVERFLOW))]:
        kind = rng.choice(["ap_fixed", "ap_ufixed"])
        w = rng.randint(1, 64)
        if rng.random() < 0.7:
            w = max(1, min(64, a.w + rng.randint(-6, 3)))
        i = max(-8, min(w + 8, a.i + rng.randint(-4, 3)))
        lines.append(f"        {{ {kind}<{w}, {i}, {mode_q}, {mode_o}> c = a; show(c); c = b; show(c); c = a * b; show(c); c += a; show(c); }}")
        lines.append(f"        {{ {kind}<{w}, {i}, {mode_q}, {mode_o}> c = (double)(int64_t)value(k) / 1048576.0; show(c); }}")
    # Without integer bits the vendor's conversion to integers has no meaning.
    lines += [f"        {{ {kind}<{rng.randint(1, 64)}> c = {x}; show(c); }}" for kind, x, t in (("ap_int", "a", a), ("ap_uint", "b", b)) if t.i >= 1]
    lines += ["        std::printf(\"\\n\");", "    }", "}"]
    return "\n".join(lines)


def run(command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr[:4000]}")
    return done.stdout


def main():
    ours, vendor = sys.argv[1:3]
    pairs = int(sys.argv[3]) if len(sys.argv) > 3 else 200
    rng = random.Random(int(sys.argv[4]) if len(sys.argv) > 4 else 1)
    modes = [(q, o) for q in ROUND for o in OVERFLOW]
    results = 0
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        for first in range(0, pairs, PER_FILE):
            numbers = range(first, min(first + PER_FILE, pairs))
            text = HEAD + "\n".join(body(rng, n, *modes[n % len(modes)]) for n in numbers)
            text += "\nint main() {\n" + "".join(f"    case_{n}();\n" for n in numbers) + "}\n"
            (work / "types.cpp").write_text(text)
            run(["g++", "-std=c++14", "-O1", "-DOURS", "-Wall", "-Wextra", "-pedantic", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover=all", "-I", ours, work / "types.cpp", "-o", work / "ours"])
            run(["g++", "-std=c++14", "-O0", "-w", "-DNDEBUG", "-I", vendor, work / "types.cpp", "-o", work / "theirs"])
            a, b = run([work / "ours"]).split("\n"), run([work / "theirs"]).split("\n")
            case = ""
            for x, y in zip(a, b):
                case = x if x.startswith("case") else case
                results += x.count(" ")
                if x != y:
                    differ = [i for i, (p, q) in enumerate(zip(x.split(), y.split())) if p != q]
                    source = text[text.index(f"static void case_{case.split()[1]}()") :].split("\n}")[0]
                    sys.exit(f"{case}\n{source}\nours   {x}\nvendor {y}\nfields {differ}")
            if len(a) != len(b):
                sys.exit("the programs print different numbers of lines")
    print(f"ok: {pairs} pairs of types, {results} results as the vendor's")


main()
