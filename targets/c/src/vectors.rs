//! Vectors as GCC and Clang extend C with them: types, and the functions on them that printed code calls. Each lane is computed as the
//! scalar code does it, so results have the same bits.

use crate::helpers::Helpers;
use crate::text::{Level, Text};
use crate::types::{constant, is_narrow, memory};
use infc_ir::scalar::{Binary, Unary};
use infc_ir::{DType, Fault};

/// A vector type of printed code, named `f32x4` and the like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VecTy {
    /// `f` for floats, `i` and `u` for integers.
    pub kind: char,
    /// Bits of an element.
    pub bits: usize,
    /// Number of elements, a power of two.
    pub lanes: usize,
}

impl VecTy {
    /// What values of a dtype travel in; conditions travel as [`VecTy::mask`].
    pub fn value(dtype: DType, lanes: usize) -> VecTy {
        match dtype {
            DType::F64 => VecTy { kind: 'f', bits: 64, lanes },
            d if d.is_float() => VecTy { kind: 'f', bits: 32, lanes },
            d => VecTy::memory(d, lanes),
        }
    }
    /// What elements are in memory.
    pub fn memory(dtype: DType, lanes: usize) -> VecTy {
        let kind = match dtype {
            DType::F32 | DType::F64 => 'f',
            d if d.is_signed() && d.is_int() => 'i',
            _ => 'u',
        };
        VecTy { kind, bits: 8 * dtype.bytes(), lanes }
    }
    /// Conditions of lanes: all bits or none.
    pub fn mask(bits: usize, lanes: usize) -> VecTy {
        VecTy { kind: 'i', bits, lanes }
    }
    fn with(self, kind: char) -> VecTy {
        VecTy { kind, ..self }
    }
    /// Its name.
    pub fn name(self) -> String {
        format!("{}{}x{}", self.kind, self.bits, self.lanes)
    }
    /// The type of an element.
    pub fn element(self) -> String {
        match (self.kind, self.bits) {
            ('f', 64) => "double".to_owned(),
            ('f', _) => "float".to_owned(),
            ('i', bits) => format!("int{bits}_t"),
            (_, bits) => format!("uint{bits}_t"),
        }
    }
}

/// Is it the name of a vector type, or does one end it? Variables must not be called so.
pub fn is_vector_name(name: &str) -> bool {
    let ending = name.rsplit('_').next().unwrap_or_default();
    let parts = ending
        .split_once('x')
        .filter(|(ty, lanes)| !lanes.is_empty() && lanes.bytes().all(|b| b.is_ascii_digit()) && ty.len() > 1);
    parts.is_some_and(|(ty, _)| ty.starts_with(['f', 'i', 'u']) && ty[1..].bytes().all(|b| b.is_ascii_digit()))
}

/// The vector of a value for each lane.
#[derive(Clone, Debug)]
pub struct Lanes {
    /// Its text.
    pub text: Text,
    /// Its type.
    pub ty: VecTy,
}

impl Lanes {
    fn atom(text: String, ty: VecTy) -> Lanes {
        Lanes { text: Text::atom(text), ty }
    }
}

/// What operators of C do, with the result seen as `ty`.
fn seen(h: &mut Helpers, ty: VecTy, text: &Text) -> Lanes {
    Lanes { text: Text::cast(&h.vector_type(ty), &Text::new(Level::Other, text.text.clone())), ty }
}

impl Helpers {
    /// A vector type, defined where it is used.
    pub fn vector_type(&mut self, ty: VecTy) -> String {
        self.need(ty.name(), |_, name| {
            format!("typedef {} {name} __attribute__((vector_size({})));\n", ty.element(), ty.bits / 8 * ty.lanes)
        })
    }

    /// `load`, `store` or `splat` of a vector.
    pub fn vector_memory(&mut self, op: &str, ty: VecTy) -> String {
        let v = self.vector_type(ty);
        self.need(format!("{op}_{}", ty.name()), |_, name| {
            let e = ty.element();
            match op {
                "load" => format!(
                    "static inline {v} {name}(const {e} *p) {{\n    {v} x;\n    memcpy(&x, p, sizeof x);\n    return x;\n}}\n"
                ),
                "store" => format!("static inline void {name}({e} *p, {v} x) {{ memcpy(p, &x, sizeof x); }}\n"),
                _ => format!("static inline {v} {name}({e} x) {{ return ({v}){{{}}}; }}\n", vec!["x"; ty.lanes].join(", ")),
            }
        })
    }

    /// `x` in all lanes.
    pub fn splat(&mut self, ty: VecTy, x: &Text) -> Lanes {
        Lanes { text: Text::call(&self.vector_memory("splat", ty), &[x]), ty }
    }

    /// One of two vectors for each lane, by a mask of lanes as wide.
    pub fn select(&mut self, mask: &Text, a: &Lanes, b: &Lanes) -> Lanes {
        let ty = a.ty;
        let v = self.vector_type(ty);
        let m = self.vector_type(VecTy::mask(ty.bits, ty.lanes));
        let name = self.need(format!("select_{}", ty.name()), |_, name| {
            format!("static inline {v} {name}({m} mask, {v} a, {v} b) {{ return ({v})((mask & ({m})a) | (~mask & ({m})b)); }}\n")
        });
        Lanes { text: Text::call(&name, &[mask, &a.text, &b.text]), ty }
    }

    /// The same numbers in another type, which must hold them; integers lose upper bits.
    pub fn convert(&mut self, x: &Lanes, ty: VecTy) -> Lanes {
        if x.ty == ty {
            return x.clone();
        }
        if x.ty.kind != 'f' && ty.kind != 'f' && x.ty.bits == ty.bits {
            return Lanes { text: Text::cast(&self.vector_type(ty), &x.text), ty };
        }
        let v = self.vector_type(ty);
        Lanes::atom(format!("__builtin_convertvector({}, {v})", x.text.text), ty)
    }

    /// The same bits in another type.
    pub fn as_bits(&mut self, x: &Lanes, ty: VecTy) -> Lanes {
        if x.ty == ty { x.clone() } else { Lanes { text: Text::cast(&self.vector_type(ty), &x.text), ty } }
    }

    /// Calls a function that does to each lane what `scalar` does to elements with these texts. `name` says what it does, and nothing else has
    /// this name.
    pub fn each_lane(
        &mut self,
        name: &str,
        result: VecTy,
        arguments: &[&Lanes],
        scalar: &dyn Fn(&mut Helpers, &[Text]) -> Result<Text, Fault>,
    ) -> Result<Lanes, Fault> {
        let types: Vec<VecTy> = arguments.iter().map(|a| a.ty).collect();
        let names: Vec<String> = types.iter().map(|&t| self.vector_type(t)).collect();
        let v = self.vector_type(result);
        let name = format!("{name}x{}", result.lanes);
        if self.begin(&name) {
            let letters = ["x", "y", "z"];
            let list: Vec<String> = names.iter().zip(letters).map(|(t, l)| format!("{t} {l}")).collect();
            let mut lanes = vec![];
            for k in 0..result.lanes {
                let elements: Vec<Text> = letters[..types.len()].iter().map(|l| Text::atom(format!("{l}[{k}]"))).collect();
                lanes.push(scalar(self, &elements)?.at(Level::Sum));
            }
            let one = format!("static inline {v} {name}({}) {{ return ({v}){{{}}}; }}\n", list.join(", "), lanes.join(", "));
            let text = match one.len() > 130 {
                false => one,
                true => format!(
                    "static inline {v} {name}({}) {{\n    return ({v}){{\n        {},\n    }};\n}}\n",
                    list.join(", "),
                    lanes.join(",\n        ")
                ),
            };
            self.define(text);
        }
        let texts: Vec<&Text> = arguments.iter().map(|a| &a.text).collect();
        Ok(Lanes { text: Text::call(&name, &texts), ty: result })
    }
}

/// A mask as wide as another type's lanes.
pub fn mask(h: &mut Helpers, m: &Lanes, bits: usize) -> Lanes {
    h.convert(m, VecTy::mask(bits, m.ty.lanes))
}

/// Is it an integer with fewer bits than its bytes have?
fn is_packed(dtype: DType) -> bool {
    dtype.is_int() && dtype.bits() as usize != 8 * dtype.bytes()
}

/// The values of what lies in memory.
pub fn from_memory(h: &mut Helpers, dtype: DType, raw: Lanes) -> Result<Lanes, Fault> {
    let lanes = raw.ty.lanes;
    match dtype {
        DType::Bool => {
            let zero = h.splat(raw.ty, &Text::atom("0"));
            let differs = Text::infix("!=", &raw.text, &zero.text);
            Ok(seen(h, VecTy::mask(8, lanes), &differs))
        }
        d if is_narrow(d) || is_packed(d) => {
            let name = format!("unpack_{}", d.name());
            h.each_lane(&name, VecTy::value(d, lanes), &[&raw], &|h, x| Ok(crate::ops::from_memory(h, d, x[0].clone())))
        }
        _ => Ok(raw),
    }
}

/// Values as they lie in memory.
pub fn to_memory(h: &mut Helpers, dtype: DType, x: Lanes) -> Result<Lanes, Fault> {
    let ty = VecTy::memory(dtype, x.ty.lanes);
    match dtype {
        DType::Bool => {
            let m = mask(h, &x, 8);
            let ones = Lanes { text: Text::minus(&m.text), ty: m.ty };
            Ok(h.as_bits(&ones, ty))
        }
        d if is_narrow(d) => {
            h.each_lane(&format!("pack_{}", d.name()), ty, &[&x], &|h, x| Ok(crate::ops::to_memory(h, d, x[0].clone())))
        }
        _ => Ok(x),
    }
}

/// Rounds results of a narrow dtype.
fn finish(h: &mut Helpers, dtype: DType, x: Lanes) -> Result<Lanes, Fault> {
    if !is_narrow(dtype) {
        return Ok(x);
    }
    let name = format!("nearest_{}", dtype.name());
    h.each_lane(&name, x.ty, &[&x], &|h, x| Ok(Text::call(&h.narrow("round", dtype), &[&x[0]])))
}

/// A comparison, or another operator of C whose result is a mask.
fn compare(h: &mut Helpers, op: &str, a: &Lanes, b: &Text) -> Lanes {
    let text = Text::infix(op, &a.text, b);
    seen(h, VecTy::mask(a.ty.bits, a.ty.lanes), &text)
}

/// One operand, of `dtype`.
pub fn unary(h: &mut Helpers, op: Unary, dtype: DType, x: &Lanes) -> Result<Lanes, Fault> {
    let ty = x.ty;
    if dtype == DType::Bool {
        return Ok(match op {
            Unary::Not => Lanes { text: Text::new(Level::Unary, format!("~{}", x.text.at(Level::Atom))), ty },
            Unary::IsNan | Unary::IsInf => h.splat(ty, &Text::atom("0")),
            _ => x.clone(),
        });
    }
    let zero = |h: &mut Helpers| h.splat(ty, &Text::number(constant(dtype, 0))).text;
    if dtype.is_float() {
        let r = match op {
            Unary::Neg => Lanes { text: Text::minus(&x.text), ty },
            Unary::Not => {
                let zero = zero(h);
                let is_zero = compare(h, "==", x, &zero);
                return cast(h, DType::Bool, dtype, &is_zero);
            }
            Unary::IsNan => return Ok(compare(h, "!=", x, &x.text)),
            Unary::Abs | Unary::IsInf => {
                let v = h.vector_type(ty);
                let u = h.vector_type(ty.with('u'));
                let ones = if ty.bits == 64 { "INT64_MAX" } else { "0x7fffffff" };
                let name = h.need(format!("abs_{}", ty.name()), |_, name| {
                    format!("static inline {v} {name}({v} x) {{ return ({v})(({u})x & {ones}); }}\n")
                });
                let abs = Lanes { text: Text::call(&name, &[&x.text]), ty };
                if op == Unary::IsInf {
                    let infinity = h.splat(ty, &Text::atom("INFINITY"));
                    return Ok(compare(h, "==", &abs, &infinity.text));
                }
                abs
            }
            _ => {
                let name = format!("{}_{}", op.name(), dtype.name());
                return h.each_lane(&name, ty, &[x], &|h, x| crate::ops::unary(h, op, dtype, &x[0]));
            }
        };
        return finish(h, dtype, r);
    }
    Ok(match op {
        Unary::IsNan | Unary::IsInf => h.splat(VecTy::mask(ty.bits, ty.lanes), &Text::atom("0")),
        Unary::Not if !is_packed(dtype) => Lanes { text: Text::new(Level::Unary, format!("~{}", x.text.at(Level::Atom))), ty },
        Unary::Neg if !is_packed(dtype) => {
            let wraps = h.as_bits(x, ty.with('u'));
            let minus = Lanes { text: Text::minus(&wraps.text), ty: wraps.ty };
            h.as_bits(&minus, ty)
        }
        Unary::Neg | Unary::Abs | Unary::Sign | Unary::Not => {
            let name = format!("{}_{}", op.name(), dtype.name());
            return h.each_lane(&name, ty, &[x], &|h, x| crate::ops::unary(h, op, dtype, &x[0]));
        }
        _ => x.clone(),
    })
}

/// Two masks as wide as the wider one.
fn masks(h: &mut Helpers, op: Binary, a: &Lanes, b: &Lanes) -> Result<Lanes, Fault> {
    let bits = a.ty.bits.max(b.ty.bits);
    let (a, b) = (mask(h, a, bits), mask(h, b, bits));
    let ty = a.ty;
    let join = |op: &str, not: [bool; 2]| {
        let side = |x: &Text, not: bool| if not { format!("~{}", x.at(Level::Atom)) } else { x.operand() };
        Lanes { text: Text::new(Level::Other, format!("{} {op} {}", side(&a.text, not[0]), side(&b.text, not[1]))), ty }
    };
    Ok(match op {
        Binary::Add | Binary::Or | Binary::Max => join("|", [false, false]),
        Binary::Sub | Binary::Xor | Binary::Ne => join("^", [false, false]),
        Binary::Mul | Binary::And | Binary::Min | Binary::Div => join("&", [false, false]),
        Binary::Eq => join("^", [true, false]),
        Binary::Gt | Binary::Shl | Binary::Shr => join("&", [false, true]),
        Binary::Lt => join("&", [true, false]),
        Binary::Ge | Binary::Pow => join("|", [false, true]),
        Binary::Le => join("|", [true, false]),
        Binary::Rem | Binary::Mod => h.splat(ty, &Text::atom("0")),
        Binary::Atan2 => return Err(infc_ir::fault!("'atan2' on bool")),
    })
}

/// Two operands of `dtype`.
pub fn binary(h: &mut Helpers, op: Binary, dtype: DType, a: &Lanes, b: &Lanes) -> Result<Lanes, Fault> {
    if dtype == DType::Bool {
        return masks(h, op, a, b);
    }
    if let Some(op) = crate::ops::comparison(op) {
        return Ok(compare(h, op, a, &b.text));
    }
    let ty = a.ty;
    let each = |h: &mut Helpers| {
        let name = format!("{}_{}", op.name(), dtype.name());
        h.each_lane(&name, ty, &[a, b], &|h, x| crate::ops::binary(h, op, dtype, &x[0], &x[1]))
    };
    let sign = |op: Binary| match op {
        Binary::Add => '+',
        Binary::Sub => '-',
        Binary::Mul => '*',
        _ => '/',
    };
    if dtype.is_float() {
        return match op {
            Binary::Add | Binary::Sub | Binary::Mul | Binary::Div => {
                let r = Lanes { text: Text::arithmetic(sign(op), &a.text, &b.text), ty };
                finish(h, dtype, r)
            }
            Binary::Min | Binary::Max => Ok(extreme(h, op, a, b)),
            _ => each(h),
        };
    }
    Ok(match op {
        Binary::Add | Binary::Sub | Binary::Mul if !is_packed(dtype) => {
            let (x, y) = (h.as_bits(a, ty.with('u')), h.as_bits(b, ty.with('u')));
            let r = Lanes { text: Text::arithmetic(sign(op), &x.text, &y.text), ty: x.ty };
            match x.ty == ty {
                true => r,
                false => seen(h, ty, &r.text),
            }
        }
        Binary::Min | Binary::Max => {
            let less = compare(h, if op == Binary::Min { "<" } else { ">" }, a, &b.text);
            h.select(&less.text, a, b)
        }
        Binary::And | Binary::Or | Binary::Xor => {
            let op = match op {
                Binary::And => '&',
                Binary::Or => '|',
                _ => '^',
            };
            Lanes { text: Text::new(Level::Other, format!("{} {op} {}", a.text.operand(), b.text.operand())), ty }
        }
        _ => return each(h),
    })
}

/// A shift by the same number of bits, less than the width.
pub fn shift(h: &mut Helpers, op: Binary, dtype: DType, a: &Lanes, by: i64) -> Option<Lanes> {
    if is_packed(dtype) || !(0..i64::from(dtype.bits())).contains(&by) {
        return None;
    }
    let ty = a.ty;
    if op == Binary::Shr {
        return Some(Lanes { text: Text::new(Level::Other, format!("{} >> {by}", a.text.operand())), ty });
    }
    let x = h.as_bits(a, ty.with('u'));
    let r = Text::new(Level::Other, format!("{} << {by}", x.text.operand()));
    Some(if x.ty == ty { Lanes { text: r, ty } } else { seen(h, ty, &r) })
}

/// Minimum and maximum of floats, with the NaN and zeros of the scalar functions.
fn extreme(h: &mut Helpers, op: Binary, a: &Lanes, b: &Lanes) -> Lanes {
    let ty = a.ty;
    let v = h.vector_type(ty);
    let m = h.vector_type(VecTy::mask(ty.bits, ty.lanes));
    let (name, cmp, zero) = match op {
        Binary::Max => ("max", '>', "a + b"),
        _ => ("min", '<', "-(-a - b)"),
    };
    let lanes = |text: &str| Lanes { text: Text::atom(text), ty };
    let nan = h.splat(ty, &Text::atom("NAN"));
    let none = h.splat(ty, &Text::number(constant(if ty.bits == 64 { DType::F64 } else { DType::F32 }, 0)));
    let zeros = h.select(&Text::atom(format!("({m})(a != {})", none.text.text)), &lanes("a"), &lanes(zero));
    let second = h.select(&Text::atom(format!("({m})(b {cmp} a)")), &lanes("b"), &zeros);
    let first = h.select(&Text::atom(format!("({m})(a {cmp} b)")), &lanes("a"), &second);
    let all = h.select(&Text::atom(format!("({m})(a != a) | ({m})(b != b)")), &nan, &lanes("r"));
    let name = h.need(format!("{name}_{}", ty.name()), |_, name| {
        format!(
            "static inline {v} {name}({v} a, {v} b) {{\n    const {v} r = {};\n    return {};\n}}\n",
            first.text.text, all.text.text
        )
    });
    Lanes { text: Text::call(&name, &[&a.text, &b.text]), ty }
}

/// Minimum or maximum of floats and a constant that is a number, where a comparison does.
pub fn limited(h: &mut Helpers, op: Binary, dtype: DType, x: &Lanes, limit: f64) -> Option<Lanes> {
    let (name, cmp) = match op {
        Binary::Max if !(limit == 0.0 && limit.is_sign_negative()) => ("at_least", '>'),
        Binary::Min if !(limit == 0.0 && limit.is_sign_positive()) => ("at_most", '<'),
        _ => return None,
    };
    if limit.is_nan() {
        return None;
    }
    let ty = x.ty;
    let v = h.vector_type(ty);
    let m = h.vector_type(VecTy::mask(ty.bits, ty.lanes));
    let lanes = |text: &str| Lanes { text: Text::atom(text), ty };
    let picked = h.select(&Text::atom(format!("({m})(x {cmp} limit) | ({m})(x != x)")), &lanes("x"), &lanes("limit"));
    let name = h.need(format!("{name}_{}", ty.name()), |_, name| {
        format!("static inline {v} {name}({v} x, {v} limit) {{ return {}; }}\n", picked.text.text)
    });
    let c = h.splat(ty, &Text::number(constant(dtype, limit.to_bits())));
    Some(Lanes { text: Text::call(&name, &[&x.text, &c.text]), ty })
}

/// `a * b + c` with one rounding.
pub fn fma(h: &mut Helpers, dtype: DType, a: &Lanes, b: &Lanes, c: &Lanes) -> Result<Lanes, Fault> {
    if !dtype.is_float() {
        let product = binary(h, Binary::Mul, dtype, a, b)?;
        return binary(h, Binary::Add, dtype, &product, c);
    }
    let name = format!("fma_{}", dtype.name());
    h.each_lane(&name, a.ty, &[a, b, c], &|h, x| crate::ops::fma(h, dtype, &x[0], &x[1], &x[2]))
}

/// Conversion of values.
pub fn cast(h: &mut Helpers, from: DType, to: DType, x: &Lanes) -> Result<Lanes, Fault> {
    if from == to {
        return Ok(x.clone());
    }
    let lanes = x.ty.lanes;
    let ty = VecTy::value(to, lanes);
    if to == DType::Bool {
        let zero = h.splat(x.ty, &Text::number(constant(from, 0)));
        return Ok(compare(h, "!=", x, &zero.text));
    }
    if from == DType::Bool {
        // 1 where the mask is -1.
        let ones = Lanes { text: Text::minus(&x.text), ty: x.ty };
        let wide = VecTy { kind: if ty.kind == 'f' { 'i' } else { ty.kind }, ..ty };
        let ones = if ty.kind == 'f' { ones } else { h.convert(&ones, wide) };
        let r = h.convert(&ones, ty);
        return finish(h, to, r);
    }
    let plain = !is_narrow(to) && !is_packed(to);
    match (from.is_float(), to.is_float()) {
        (true, true) if plain => return Ok(h.convert(x, ty)),
        (false, true) if plain => return Ok(h.convert(x, ty)),
        (false, false) if plain => return Ok(h.convert(x, ty)),
        (true, false) if plain && x.ty.bits == 32 && ty.bits <= 32 && to != DType::U32 => return Ok(saturated(h, to, x)),
        _ => {}
    }
    let name = format!("{}_from_{}", to.name(), from.name());
    h.each_lane(&name, ty, &[x], &|h, x| crate::ops::cast(h, from, to, &x[0]))
}

/// `float` to integers of at most 32 bits: truncated, saturated, 0 for NaN.
fn saturated(h: &mut Helpers, to: DType, x: &Lanes) -> Lanes {
    let lanes = x.ty.lanes;
    let (ty, wide) = (VecTy::value(to, lanes), VecTy::mask(32, lanes));
    let (lo, hi) = to.int_range().expect("an integer");
    let number = |v: i128| Text::atom(crate::types::float(DType::F32, v as f64));
    let r = |text: &str| Lanes { text: Text::atom(text), ty: x.ty };
    let v = h.vector_type(x.ty);
    let m = h.vector_type(wide);
    let t = h.vector_type(ty);
    let (least, zero) = (h.splat(x.ty, &number(lo)), h.splat(x.ty, &number(0)));
    let low = h.select(&Text::atom(format!("({m})(x > {})", least.text.text)), &r("x"), &least);
    let name = format!("{}_from_{}", to.name(), x.ty.name());
    let body = if hi < 1 << 24 {
        let most = h.splat(x.ty, &number(hi));
        let high = h.select(&Text::atom(format!("({m})(r < {})", most.text.text)), &r("r"), &most);
        let real = h.select(&Text::atom(format!("({m})(x == x)")), &r("r"), &zero);
        let whole = h.convert(&r("r"), wide);
        let whole = h.convert(&whole, ty);
        format!(
            "    {v} r = {};\n    r = {};\n    r = {};\n    return {};\n",
            low.text.text, high.text.text, real.text.text, whole.text.text
        )
    } else {
        // The largest integer is no float: from the next one on it is put in afterwards.
        let above = h.splat(x.ty, &number(hi + 1));
        let real = h.select(&Text::atom(format!("high | ({m})(x != x)")), &zero, &r("r"));
        let whole = h.convert(&r("r"), wide);
        let most = h.splat(wide, &Text::atom(crate::types::integer(hi as i64)));
        let whole = h.select(&Text::atom("high"), &most, &whole);
        format!(
            "    const {m} high = ({m})(x >= {});\n    {v} r = {};\n    r = {};\n    return {};\n",
            above.text.text, low.text.text, real.text.text, whole.text.text
        )
    };
    let name = h.need(name, |_, name| format!("static inline {t} {name}({v} x) {{\n{body}}}\n"));
    Lanes { text: Text::call(&name, &[&x.text]), ty }
}

/// The same bits as another dtype of the same width.
pub fn bitcast(h: &mut Helpers, from: DType, to: DType, x: &Lanes) -> Result<Lanes, Fault> {
    let ty = VecTy::value(to, x.ty.lanes);
    let plain = |d: DType| d != DType::Bool && !is_narrow(d) && !is_packed(d);
    if plain(from) && plain(to) {
        return Ok(h.as_bits(x, ty));
    }
    if from == DType::Bool {
        let raw = to_memory(h, DType::Bool, x.clone())?;
        return bitcast(h, DType::U8, to, &raw);
    }
    if to == DType::Bool {
        let raw = bitcast(h, from, DType::U8, x)?;
        return from_memory(h, DType::Bool, raw);
    }
    let name = format!("{}_of_bits_{}", to.name(), from.name());
    h.each_lane(&name, ty, &[x], &|h, x| crate::ops::bitcast(h, from, to, &x[0]))
}

/// The type of elements of a vector of a dtype, for lists of lanes.
pub fn listed(h: &mut Helpers, dtype: DType, lanes: usize, elements: &[Text]) -> Result<Lanes, Fault> {
    memory(dtype)?;
    let (ty, list): (VecTy, Vec<String>) = match dtype {
        DType::Bool => (VecTy::mask(32, lanes), elements.iter().map(|t| format!("-({})", t.text)).collect()),
        d => (VecTy::value(d, lanes), elements.iter().map(|t| t.text.clone()).collect()),
    };
    Ok(Lanes::atom(format!("({}){{{}}}", h.vector_type(ty), list.join(", ")), ty))
}
