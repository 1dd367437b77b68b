//! Functions that emitted code may call, in LLVM assembly: what has no short branch-free form. They stand in the same image.

/// A helper function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Helper {
    /// C `fmod` of f32.
    FmodF32,
    /// C `fmod` of f64.
    FmodF64,
    /// Integer power modulo 2^64, signed operands.
    PowSigned,
    /// Integer power modulo 2^64, unsigned operands.
    PowUnsigned,
}

impl Helper {
    /// Its symbol.
    pub fn symbol(self) -> &'static str {
        match self {
            Helper::FmodF32 => "@infc.fmod.f32",
            Helper::FmodF64 => "@infc.fmod.f64",
            Helper::PowSigned => "@infc.pow.signed",
            Helper::PowUnsigned => "@infc.pow.unsigned",
        }
    }

    /// Its definition.
    pub fn definition(self) -> String {
        match self {
            Helper::FmodF32 => fmod("float", "i32", 32, 23),
            Helper::FmodF64 => fmod("double", "i64", 64, 52),
            Helper::PowSigned => POW_SIGNED.into(),
            Helper::PowUnsigned => POW_UNSIGNED.into(),
        }
    }
}

/// Long division of the significands: exact. Bits are brought down `step` at a time.
fn fmod(ty: &str, int: &str, bits: u32, mantissa: u32) -> String {
    let abs = (1i128 << (bits - 1)) - 1;
    let hidden = 1i128 << mantissa;
    let low = hidden - 1;
    let inf = abs - low;
    let bias = (1i64 << (bits - mantissa - 2)) - 1;
    let step = 63 - mantissa;
    let sign = -(1i128 << (bits - 1));
    // A value with exponent field e (1 for subnormals) and significand m is m * 2^(e - bias - mantissa).
    let unit = -bias - i64::from(mantissa); // exponent of the unit, less e
    let least = 1 - bias; // least exponent of a normal value
    let (widen, narrow) = if bits == 64 {
        ("add i64 0, %".to_string(), "add i64 0, %".to_string())
    } else {
        ("zext i32 %".to_string(), "trunc i64 %".to_string())
    };
    let (to64, to_int) = if bits == 64 { ("", "") } else { (" to i64", " to i32") };
    format!(
        "define internal {ty} @infc.fmod.{name}({ty} %x, {ty} %y) #1 {{
start:
  %xb = bitcast {ty} %x to {int}
  %yb = bitcast {ty} %y to {int}
  %xa = and {int} %xb, {abs}
  %ya = and {int} %yb, {abs}
  %y0 = icmp eq {int} %ya, 0
  %yn = icmp ugt {int} %ya, {inf}
  %xn = icmp uge {int} %xa, {inf}
  %b1 = or i1 %y0, %yn
  %bad = or i1 %b1, %xn
  br i1 %bad, label %nan, label %finite
nan:
  ret {ty} 0x7FF8000000000000
finite:
  %less = icmp ult {int} %xa, %ya
  br i1 %less, label %same, label %divide
same:
  ret {ty} %x
divide:
  %xe0 = lshr {int} %xa, {mantissa}
  %ye0 = lshr {int} %ya, {mantissa}
  %xs = icmp eq {int} %xe0, 0
  %ys = icmp eq {int} %ye0, 0
  %xe = select i1 %xs, {int} 1, {int} %xe0
  %ye = select i1 %ys, {int} 1, {int} %ye0
  %xh = select i1 %xs, {int} 0, {int} {hidden}
  %yh = select i1 %ys, {int} 0, {int} {hidden}
  %xl = and {int} %xa, {low}
  %yl = and {int} %ya, {low}
  %xm0 = or {int} %xl, %xh
  %ym0 = or {int} %yl, %yh
  %xm = {widen}xm0{to64}
  %ym = {widen}ym0{to64}
  %d0 = sub {int} %xe, %ye
  %m0 = urem i64 %xm, %ym
  br label %loop
loop:
  %m = phi i64 [ %m0, %divide ], [ %m2, %more ]
  %d = phi {int} [ %d0, %divide ], [ %d2, %more ]
  %go = icmp ne {int} %d, 0
  br i1 %go, label %more, label %done
more:
  %part = icmp ult {int} %d, {step}
  %s = select i1 %part, {int} %d, {int} {step}
  %s64 = {widen}s{to64}
  %m1 = shl i64 %m, %s64
  %m2 = urem i64 %m1, %ym
  %d2 = sub {int} %d, %s
  br label %loop
done:
  %k = add {int} %ye, {unit}
  %normal = icmp sge {int} %k, {least}
  %kn = add {int} %k, {bias}
  %nb = shl {int} %kn, {mantissa}
  %ks = add {int} %k, {subnormal}
  %ks2 = select i1 %normal, {int} 0, {int} %ks
  %sb = shl {int} 1, %ks2
  %ub = select i1 %normal, {int} %nb, {int} %sb
  %u = bitcast {int} %ub to {ty}
  %mi = {narrow}m{to_int}
  %mf = sitofp {int} %mi to {ty}
  %r = fmul {ty} %mf, %u
  %rb = bitcast {ty} %r to {int}
  %sign = and {int} %xb, {sign}
  %out = or {int} %rb, %sign
  %o = bitcast {int} %out to {ty}
  ret {ty} %o
}}
",
        name = if bits == 64 { "f64" } else { "f32" },
        subnormal = -unit - 1,
    )
}

const POW_SIGNED: &str = "define internal i64 @infc.pow.signed(i64 %x, i64 %e) #1 {
start:
  %negative = icmp slt i64 %e, 0
  br i1 %negative, label %inverse, label %loop
inverse:
  %one = icmp eq i64 %x, 1
  %minus = icmp eq i64 %x, -1
  %low = and i64 %e, 1
  %odd = icmp ne i64 %low, 0
  %s = select i1 %odd, i64 -1, i64 1
  %r0 = select i1 %minus, i64 %s, i64 0
  %r1 = select i1 %one, i64 1, i64 %r0
  ret i64 %r1
loop:
  %r = phi i64 [ 1, %start ], [ %r.next, %more ]
  %q = phi i64 [ %x, %start ], [ %q.next, %more ]
  %n = phi i64 [ %e, %start ], [ %n.next, %more ]
  %go = icmp ne i64 %n, 0
  br i1 %go, label %more, label %done
more:
  %bit = and i64 %n, 1
  %take = icmp ne i64 %bit, 0
  %p = mul i64 %r, %q
  %r.next = select i1 %take, i64 %p, i64 %r
  %q.next = mul i64 %q, %q
  %n.next = lshr i64 %n, 1
  br label %loop
done:
  ret i64 %r
}
";

const POW_UNSIGNED: &str = "define internal i64 @infc.pow.unsigned(i64 %x, i64 %e) #1 {
start:
  br label %loop
loop:
  %r = phi i64 [ 1, %start ], [ %r.next, %more ]
  %q = phi i64 [ %x, %start ], [ %q.next, %more ]
  %n = phi i64 [ %e, %start ], [ %n.next, %more ]
  %go = icmp ne i64 %n, 0
  br i1 %go, label %more, label %done
more:
  %bit = and i64 %n, 1
  %take = icmp ne i64 %bit, 0
  %p = mul i64 %r, %q
  %r.next = select i1 %take, i64 %p, i64 %r
  %q.next = mul i64 %q, %q
  %n.next = lshr i64 %n, 1
  br label %loop
done:
  ret i64 %r
}
";
