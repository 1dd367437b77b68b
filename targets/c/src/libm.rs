//! The exact functions of `<math.h>` as C of our own, for code that shall not need it: `fabs floor ceil trunc rint sqrt fmod` of `float`
//! and `double`. All give IEEE's results for every argument, of zeros, infinities and NaN too.

/// The other function that this one calls.
pub fn calls(name: &str) -> Option<&'static str> {
    match name {
        "floor" | "ceil" => Some("trunc"),
        _ => None,
    }
}

/// The definition of a function as `own`. `to` and `from` convert between floats and their bits; `base` is what [`calls`] says.
pub fn function(name: &str, double: bool, own: &str, to: &str, from: &str, base: &str) -> String {
    let body = match name {
        "fabs" => FABS,
        "trunc" => TRUNC,
        "floor" => "static inline T OWN(T x) {\n    T t = BASE(x);\n    return t > x ? t - 1 : t;\n}\n",
        "ceil" => "static inline T OWN(T x) {\n    T t = BASE(x);\n    return t < x ? t + 1 : t;\n}\n",
        "rint" => RINT,
        "sqrt" => SQRT,
        _ => FMOD,
    };
    let (t, u, int, mantissa, width) = match double {
        true => ("double", "uint64_t", "int64_t", 52u32, 64u32),
        false => ("float", "uint32_t", "int32_t", 23, 32),
    };
    let c = |v: u64| if double { format!("UINT64_C({v:#x})") } else { format!("{v:#x}u") };
    let bias = (1u64 << (width - mantissa - 2)) - 1;
    let magic = if double { "0x1p52".to_owned() } else { "0x1p23f".to_owned() };
    let words: [(&str, String); 16] = [
        ("SIGN", c(1 << (width - 1))),
        ("REST", c((1 << (width - 1)) - 1)),
        ("FRACTION", c((1 << mantissa) - 1)),
        ("LEADING", c(1 << mantissa)),
        ("INFINITE", c((2 * bias + 1) << mantissa)),
        ("EXPONENTS", (2 * bias + 1).to_string()),
        ("MANTISSA", mantissa.to_string()),
        ("MAGIC", magic),
        ("BIAS", bias.to_string()),
        // The root has two bits more than the mantissa with its leading one: enough to round it.
        ("ROOT_BITS", (mantissa + 3).to_string()),
        ("ROOT_TOP", (mantissa + 2).to_string()),
        ("INT", int.to_owned()),
        ("BASE", base.to_owned()),
        ("OWN", own.to_owned()),
        ("U", u.to_owned()),
        ("T", t.to_owned()),
    ];
    let mut text = String::new();
    for part in split(body) {
        let word = words.iter().find(|w| w.0 == part).map(|w| w.1.as_str());
        text += match part {
            "TO" => to,
            "FROM" => from,
            _ => word.unwrap_or(part),
        };
    }
    text
}

/// Identifiers and what stands between them.
fn split(text: &str) -> Vec<&str> {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut out = vec![];
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c| part(c) != part(first)).unwrap_or(rest.len());
        let (head, tail) = rest.split_at(end);
        out.push(head);
        rest = tail;
    }
    out
}

const FABS: &str = "static inline T OWN(T x) { return FROM(TO(x) & REST); }
";

const TRUNC: &str = "static inline T OWN(T x) {
    U bits = TO(x);
    int exponent = (int)(bits >> MANTISSA & EXPONENTS) - BIAS;
    if (exponent >= MANTISSA) return x;
    return FROM(exponent < 0 ? bits & SIGN : bits & ~(FRACTION >> exponent));
}
";

/// Adding and subtracting the number from which neighbours are 1 apart rounds to integers.
const RINT: &str = "static inline T OWN(T x) {
    U bits = TO(x), sign = bits & SIGN;
    T y = FROM(bits ^ sign);
    if (!(y < MAGIC)) return x;
    y = y + MAGIC;
    return FROM(TO(y - MAGIC) | sign);
}
";

/// Bit by bit: the remainder says whether the root is exact.
const SQRT: &str = "static T OWN(T x) {
    U bits = TO(x), m = bits & FRACTION, root = 0, rest = 0;
    int exponent = (int)(bits >> MANTISSA), k;
    if (x == 0 || x != x || bits == INFINITE) return x;
    if (bits & SIGN) return NAN;
    if (exponent == 0) {
        for (exponent = 1; (m & LEADING) == 0; exponent--) m <<= 1;
    }
    m |= LEADING;
    exponent -= BIAS;
    if (exponent & 1) {
        m <<= 1;
        exponent--;
    }
    /* m has the two bits before the point at MANTISSA; the root gets ROOT_BITS bits, the first of them before the point. */
    for (k = 0; k < ROOT_BITS; k++) {
        U trial;
        rest = rest << 2 | (m >> MANTISSA & 3);
        m = (m & FRACTION) << 2;
        trial = root << 2 | 1;
        root <<= 1;
        if (rest >= trial) {
            rest -= trial;
            root |= 1;
        }
    }
    root |= rest != 0;
    return (T)root * FROM((U)(exponent / 2 + BIAS - ROOT_TOP) << MANTISSA);
}
";

/// The remainder of integers times a power of two, by shifts and subtractions.
const FMOD: &str = "static T OWN(T x, T y) {
    U a = TO(x) & REST, b = TO(y) & REST, sign = TO(x) & SIGN;
    int i = (int)(a >> MANTISSA), j = (int)(b >> MANTISSA);
    if (b == 0 || a >= INFINITE || b > INFINITE) return NAN;
    if (a < b) return x;
    a &= FRACTION;
    b &= FRACTION;
    if (i != 0) a |= LEADING;
    else i = 1;
    if (j != 0) b |= LEADING;
    else j = 1;
    for (; i > j; i--) a = a % b << 1;
    a %= b;
    if (a == 0) return FROM(sign);
    while (i > 1 && (a & LEADING) == 0) {
        a <<= 1;
        i--;
    }
    if (a & LEADING) a = (a & FRACTION) | (U)i << MANTISSA;
    return FROM(a | sign);
}
";

/// `x * y + z` of doubles, rounded once: the product and the sum are exact in 128 bits, but for a last bit that says that more follows.
pub const FMA: &str = "/* Bits and exponent of a number that is not 0: between 2^52 and 2^53, times a power of two. */
static uint64_t NAME_parts(double x, int *exponent) {
    uint64_t bits = TO_BITS(x), m = bits & UINT64_C(0xfffffffffffff);
    *exponent = (int)(bits >> 52 & 2047) - 1075;
    if (*exponent != -1075) return m | UINT64_C(1) << 52;
    for (++*exponent; m >> 52 == 0; --*exponent) m <<= 1;
    return m;
}

static double NAME(double x, double y, double z) {
    int ex, ey, ez, negative, other_negative = z < 0, drop, top;
    uint64_t a, b, c, mid, more, high, low, other_high, other_low, rest, last;
    if (x == 0 || y == 0 || x - x != 0 || y - y != 0 || z - z != 0) return x * y + z;
    if (z == 0) return x * y;
    a = NAME_parts(x, &ex);
    b = NAME_parts(y, &ey);
    c = NAME_parts(z, &ez);
    /* The product below 2^126, z below it too. */
    mid = (a >> 32) * (b & 0xffffffffu) + ((a & 0xffffffffu) * (b & 0xffffffffu) >> 32);
    more = (a & 0xffffffffu) * (b >> 32) + (mid & 0xffffffffu);
    low = more << 32 | ((a * b) & 0xffffffffu);
    high = (a >> 32) * (b >> 32) + (mid >> 32) + (more >> 32);
    high = high << 20 | low >> 44;
    low <<= 20;
    ex += ey - 20;
    other_high = c << 9;
    other_low = 0;
    ez -= 73;
    negative = (x < 0) != (y < 0);
    drop = ex - ez;
    if (drop < 0) {
        uint64_t t = high;
        high = other_high, other_high = t;
        t = low, low = other_low, other_low = t;
        other_negative = negative;
        negative = z < 0;
        drop = -drop;
        ex = ez;
    }
    if (drop > 127) {
        other_high = 0;
        other_low = 1;
    } else if (drop > 63) {
        last = (other_high << (127 - drop) << 1 | other_low) != 0;
        other_low = other_high >> (drop - 64) | last;
        other_high = 0;
    } else if (drop > 0) {
        last = other_low << (64 - drop) != 0;
        other_low = other_high << (64 - drop) | other_low >> drop | last;
        other_high >>= drop;
    }
    if (negative == other_negative) {
        low += other_low;
        high += other_high + (low < other_low);
    } else {
        /* The sign is that of the larger one. */
        if (high == other_high && low == other_low) return 0;
        if (high < other_high || (high == other_high && low < other_low)) {
            high = other_high - high - (other_low < low);
            low = other_low - low;
            negative = other_negative;
        } else {
            high -= other_high + (low < other_low);
            low -= other_low;
        }
    }
    for (; high >> 63 == 0; ex--) {
        high = high << 1 | low >> 63;
        low <<= 1;
    }
    high |= low != 0;
    top = ex + 127;
    drop = top < -1022 ? 11 - 1022 - top : 11;
    rest = drop > 64 ? 0 : drop == 64 ? high : high << (64 - drop);
    low = drop > 63 ? 0 : high >> drop;
    low += rest > UINT64_C(1) << 63 || (rest == UINT64_C(1) << 63 && (low & 1));
    if (top > 1023) return negative ? -INFINITY : INFINITY;
    if (top >= -1022) low += (uint64_t)(top + 1022) << 52;
    return FROM_BITS(low | (uint64_t)negative << 63);
}
";
