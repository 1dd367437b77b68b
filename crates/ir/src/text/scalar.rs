//! Text form of scalar bodies.
//!
//! ```text
//! 1.0:f32   -3:i8   true   NaN:f16   nan(0x7ff4000000000001):f64      constants
//! (2*i0 + n)                                                          an index expression, i64
//! b0:f32[i0, =t1:i64]?(lt((i0), (n)), 0.0:f32)                        a read; `=` marks an index that is a scalar; guard
//! t0:f32                                                              an accumulator or a `Let`
//! add(.., ..)  neg(..)  fma(..)  select(..)  cast(f16, ..)  bitcast(i32, ..)
//! let(x0 = .., x1 = .., ..)                                           shared parts of a large body, by name
//! ```

use super::cursor::Cursor;
use crate::DType;
use crate::dtype::Class;
use crate::fault::Problem;
use crate::scalar::{Binary, Kind, Scalar, Unary};
use std::collections::HashMap;
use std::fmt;

/// Bodies whose text as a tree would have more nodes than this are printed with `let`.
const LARGE: u64 = 100;
/// In large bodies every part of a height that is a multiple of this gets a name, so that no text nests deeply.
const LEVEL: u32 = 32;

/// Prints a float so that it reads back to the same bits.
pub(super) fn write_float(f: &mut dyn fmt::Write, value: f64) -> fmt::Result {
    if value.is_nan() && value.to_bits() != f64::NAN.to_bits() {
        write!(f, "nan({:#x})", value.to_bits())
    } else {
        write!(f, "{value:?}")
    }
}

/// Reads what [`write_float`] prints.
pub(super) fn parse_float(c: &mut Cursor) -> Result<f64, Problem> {
    if c.eat("nan") {
        c.expect("(")?;
        let bits = c.hex()?;
        c.expect(")")?;
        return Ok(f64::from_bits(bits));
    }
    c.number("a number")
}

/// Names of the shared parts of a large body.
type Names = HashMap<Scalar, usize>;

fn is_leaf(s: Scalar) -> bool {
    matches!(s.kind(), Kind::Const(_) | Kind::Index(_) | Kind::Local(_))
}

/// The parts of `s` to name, operands first; empty for bodies that are small as a tree.
fn named_parts(s: Scalar) -> Vec<Scalar> {
    let (mut size, mut height, mut uses): (HashMap<_, u64>, HashMap<_, u32>, HashMap<_, u32>) = Default::default();
    let mut order = vec![];
    s.visit(&mut |n| {
        let operands = n.operands();
        size.insert(n, operands.iter().fold(1, |a: u64, o| a.saturating_add(size[o])));
        height.insert(n, operands.iter().map(|o| height[o] + 1).max().unwrap_or(0));
        operands.into_iter().for_each(|o| *uses.entry(o).or_default() += 1);
        order.push(n);
    });
    if size[&s] <= LARGE {
        return vec![];
    }
    order.retain(|&n| n != s && !is_leaf(n) && (uses[&n] > 1 || height[&n] % LEVEL == 0));
    order
}

impl fmt::Display for Scalar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = named_parts(*self);
        let mut names = Names::new();
        if parts.is_empty() {
            return write_node(f, *self, &names);
        }
        f.write_str("let(")?;
        for (i, &part) in parts.iter().enumerate() {
            write!(f, "x{i} = ")?;
            write_node(f, part, &names)?;
            f.write_str(", ")?;
            names.insert(part, i);
        }
        write_node(f, *self, &names)?;
        f.write_str(")")
    }
}

fn write_scalar(f: &mut fmt::Formatter<'_>, s: Scalar, names: &Names) -> fmt::Result {
    match names.get(&s) {
        Some(i) => write!(f, "x{i}"),
        None => write_node(f, s, names),
    }
}

fn write_call(f: &mut fmt::Formatter<'_>, name: &str, dtype: Option<DType>, args: &[Scalar], names: &Names) -> fmt::Result {
    write!(f, "{name}(")?;
    if let Some(d) = dtype {
        write!(f, "{d}, ")?;
    }
    for (i, &a) in args.iter().enumerate() {
        f.write_str(if i > 0 { ", " } else { "" })?;
        write_scalar(f, a, names)?;
    }
    f.write_str(")")
}

fn write_node(f: &mut fmt::Formatter<'_>, s: Scalar, names: &Names) -> fmt::Result {
    let d = s.dtype();
    let args = s.operands();
    match s.kind() {
        Kind::Const(c) => match d.class() {
            Class::Float => {
                write_float(f, f64::from_bits(*c))?;
                write!(f, ":{d}")
            }
            Class::Unsigned => write!(f, "{c}:{d}"),
            Class::Bool => f.write_str(if *c == 0 { "false" } else { "true" }),
            Class::Signed | Class::Complex | Class::Text => write!(f, "{}:{d}", *c as i64),
        },
        Kind::Index(e) => write!(f, "({e})"),
        Kind::Read { source, index, guard } => {
            write!(f, "b{source}:{d}[")?;
            for (i, &at) in index.iter().enumerate() {
                f.write_str(if i > 0 { ", " } else { "" })?;
                match at.as_index() {
                    Some(e) if Scalar::index(e) == at => write!(f, "{e}")?,
                    _ => {
                        f.write_str("=")?;
                        write_scalar(f, at, names)?;
                    }
                }
            }
            f.write_str("]")?;
            match guard {
                Some((cond, other)) => write_call(f, "?", None, &[*cond, *other], names),
                None => Ok(()),
            }
        }
        Kind::Local(n) => write!(f, "t{n}:{d}"),
        Kind::Unary(op, _) => write_call(f, op.name(), None, &args, names),
        Kind::Binary(op, ..) => write_call(f, op.name(), None, &args, names),
        Kind::Fma(..) => write_call(f, "fma", None, &args, names),
        Kind::Select(..) => write_call(f, "select", None, &args, names),
        Kind::Cast(_) => write_call(f, "cast", Some(d), &args, names),
        Kind::Bitcast(_) => write_call(f, "bitcast", Some(d), &args, names),
    }
}

/// Parses a scalar at the cursor. Nothing is folded: the result is the node that was printed.
pub fn parse(c: &mut Cursor) -> Result<Scalar, Problem> {
    let mut names = vec![];
    if !c.eat("let") {
        return scalar(c, &names);
    }
    c.expect("(")?;
    while assignment_follows(c) {
        c.word();
        c.expect("=")?;
        let part = scalar(c, &names)?;
        names.push(part);
        c.expect(",")?;
    }
    let body = scalar(c, &names)?;
    c.expect(")")?;
    Ok(body)
}

impl std::str::FromStr for Scalar {
    type Err = Problem;
    fn from_str(text: &str) -> Result<Scalar, Problem> {
        let mut c = Cursor::new(text);
        let s = parse(&mut c)?;
        if c.at_end() { Ok(s) } else { Err(c.expected("the end of the scalar")) }
    }
}

fn scalar(c: &mut Cursor, names: &[Scalar]) -> Result<Scalar, Problem> {
    c.nested(|c| {
        let start = c.clone();
        if c.eat("(") {
            let e = c.expr()?;
            c.expect(")")?;
            return Ok(Scalar::raw(DType::I64, Kind::Index(e)));
        }
        let mut ahead = c.clone();
        let word = ahead.word();
        let numbered = |prefix: char| word.strip_prefix(prefix).and_then(|n| n.parse::<u32>().ok());
        let literal = matches!(word, "NaN" | "inf" | "nan") || word.is_empty() || word.starts_with(|c: char| c.is_ascii_digit());
        if literal {
            return constant(c);
        }
        *c = ahead;
        if let Some(source) = numbered('b') {
            return read(c, source, names);
        }
        if let Some(n) = numbered('t') {
            c.expect(":")?;
            return Ok(Scalar::raw(c.dtype()?, Kind::Local(n)));
        }
        if let Some(n) = numbered('x') {
            return names.get(n as usize).copied().ok_or_else(|| start.expected("the name of an earlier part"));
        }
        match word {
            "true" | "false" => Ok(Scalar::int(DType::Bool, i64::from(word == "true"))),
            "cast" | "bitcast" => {
                c.expect("(")?;
                let d = c.dtype()?;
                c.expect(",")?;
                let a = scalar(c, names)?;
                c.expect(")")?;
                if word == "bitcast" && a.dtype().bytes() != d.bytes() {
                    return Err(start.error(format!("bitcast from {} to {d} changes the width", a.dtype())));
                }
                Ok(Scalar::raw(d, if word == "cast" { Kind::Cast(a) } else { Kind::Bitcast(a) }))
            }
            _ => {
                if !c.rest().starts_with('(') {
                    return Err(start.expected("a scalar"));
                }
                let args = c.list("(", ")", |c| scalar(c, names))?;
                call(word, &args).map_err(|e| start.error(e))
            }
        }
    })
}

fn assignment_follows(c: &Cursor) -> bool {
    let mut ahead = c.clone();
    ahead.word().starts_with('x') && ahead.eat("=")
}

fn constant(c: &mut Cursor) -> Result<Scalar, Problem> {
    let start = c.clone();
    // The dtype stands after the literal: find it first.
    let mut ahead = c.clone();
    ahead.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.' | '(' | ')'));
    if !ahead.eat(":") {
        return Err(start.expected("a scalar"));
    }
    let d = ahead.dtype()?;
    let bits = match d.class() {
        Class::Float => parse_float(c)?.to_bits(),
        Class::Unsigned => c.number::<u64>("an unsigned integer")?,
        Class::Bool | Class::Signed | Class::Complex | Class::Text => c.number::<i64>("an integer")? as u64,
    };
    c.expect(":")?;
    c.dtype()?;
    Ok(Scalar::raw(d, Kind::Const(bits)))
}

fn read(c: &mut Cursor, source: u32, names: &[Scalar]) -> Result<Scalar, Problem> {
    c.expect(":")?;
    let dtype = c.dtype()?;
    let index = c.list("[", "]", |c| {
        let start = c.clone();
        let at = if c.eat("=") { scalar(c, names)? } else { Scalar::index(c.expr()?) };
        if at.dtype() == DType::I64 { Ok(at) } else { Err(start.error(format!("an index is {}, not i64", at.dtype()))) }
    })?;
    let mut guard = None;
    if c.eat("?") {
        let start = c.clone();
        let pair = c.list("(", ")", |c| scalar(c, names))?;
        guard = match pair[..] {
            [cond, other] if cond.dtype() == DType::Bool && other.dtype() == dtype => Some((cond, other)),
            _ => return Err(start.error(format!("a guard is a bool and a {dtype}"))),
        };
    }
    Ok(Scalar::raw(dtype, Kind::Read { source, index, guard }))
}

fn call(name: &str, args: &[Scalar]) -> Result<Scalar, String> {
    let one_dtype = |args: &[Scalar]| match args.iter().find(|a| a.dtype() != args[0].dtype()) {
        Some(a) => Err(format!("operands of {name} differ in dtype: {} and {}", args[0].dtype(), a.dtype())),
        None => Ok(()),
    };
    match (args, Unary::parse(name), Binary::parse(name)) {
        ([a], Some(op), _) => {
            let dtype = if matches!(op, Unary::IsNan | Unary::IsInf) { DType::Bool } else { a.dtype() };
            Ok(Scalar::raw(dtype, Kind::Unary(op, *a)))
        }
        ([a, b], _, Some(op)) => {
            one_dtype(args)?;
            let dtype = if op.is_comparison() { DType::Bool } else { a.dtype() };
            Ok(Scalar::raw(dtype, Kind::Binary(op, *a, *b)))
        }
        ([a, b, c], ..) if name == "fma" => {
            one_dtype(args)?;
            Ok(Scalar::raw(a.dtype(), Kind::Fma(*a, *b, *c)))
        }
        ([cond, a, b], ..) if name == "select" => {
            one_dtype(&args[1..])?;
            if cond.dtype() != DType::Bool {
                return Err(format!("the condition of select is {}, not bool", cond.dtype()));
            }
            Ok(Scalar::raw(a.dtype(), Kind::Select(*cond, *a, *b)))
        }
        _ => Err(format!("there is no operator '{name}' with {} operands", args.len())),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Expr;
    use proptest::prelude::*;

    fn round_trips(s: Scalar) {
        let text = s.to_string();
        assert_eq!(text.parse::<Scalar>().unwrap_or_else(|e| panic!("{e}\n{text}")), s, "{text}");
    }

    #[test]
    fn edge_cases_round_trip() {
        for bits in [0x7ff8_0000_0000_0000, 0xfff8_0000_0000_0000, 0x7ff4_0000_0000_0001, 1 << 63, f64::INFINITY.to_bits(), 1] {
            round_trips(Scalar::raw(DType::F64, Kind::Const(bits)));
            round_trips(Scalar::raw(DType::F16, Kind::Const(bits)));
        }
        for d in [DType::I64, DType::I8, DType::U64, DType::Bool] {
            [i64::MIN, -1, 0, 1, i64::MAX].into_iter().for_each(|v| round_trips(Scalar::int(d, v)));
        }
        let number = Scalar::raw(DType::I64, Kind::Index(Expr::int(-5)));
        round_trips(number);
        round_trips(Scalar::read(DType::F32, 3, [number, Scalar::int(DType::I64, -5), Scalar::index(Expr::sym("i0"))]));
    }

    #[test]
    fn shared_and_deep_bodies_stay_short() {
        let mut s = Scalar::read_at(DType::F32, 0, &[Expr::var(0)]);
        for _ in 0..3000 {
            s = s * Scalar::unary(Unary::Sigmoid, s);
        }
        assert!(s.to_string().len() < 200_000);
        round_trips(s);
    }

    #[test]
    fn wrong_text_is_an_error() {
        for text in [
            "",
            "add(1.0:f32)",
            "add(1.0:f32, 1:i8)",
            "x0",
            "b0:f32[=1.0:f32]",
            "1.0",
            "-",
            "select(1:i8, 1:i8, 1:i8)",
            "bitcast(i8, 1.0:f32)",
            "1:f99",
            "true true",
            "let(x0 = true, x1)",
            "b0:f32[0]?(true)",
        ] {
            assert!(text.parse::<Scalar>().is_err(), "{text}");
        }
        assert!("neg(".repeat(100_000).parse::<Scalar>().is_err());
        assert!("(".repeat(100_000).parse::<Scalar>().is_err());
    }

    pub(crate) fn any_scalar() -> impl Strategy<Value = Scalar> {
        let leaf = prop_oneof![
            any::<f32>().prop_map(|v| Scalar::raw(DType::F32, Kind::Const(f64::from(v).to_bits()))),
            (0u32..3).prop_map(|n| Scalar::local(DType::F32, n)),
            (0usize..3).prop_map(|n| Scalar::read_at(DType::F32, n, &[Expr::var(n), Expr::sym("n") + 1])),
        ];
        leaf.prop_recursive(8, 64, 3, |inner| {
            (inner.clone(), inner.clone(), inner, 0usize..64).prop_map(|(a, b, c, k)| {
                let cond = Scalar::raw(DType::Bool, Kind::Binary(Binary::Lt, a, b));
                match k {
                    0 => Scalar::raw(DType::F32, Kind::Fma(a, b, c)),
                    1 => Scalar::raw(DType::F32, Kind::Select(cond, b, c)),
                    2 => Scalar::raw(DType::F32, Kind::Cast(Scalar::raw(DType::I8, Kind::Cast(a)))),
                    3 => Scalar::raw(DType::F32, Kind::Bitcast(Scalar::raw(DType::I32, Kind::Bitcast(a)))),
                    4 => Scalar::read_if(1, [Scalar::raw(DType::I64, Kind::Cast(a)), Scalar::index(Expr::var(1))], cond, c),
                    k if k < 5 + Unary::ALL.len() => match Unary::ALL[k - 5] {
                        Unary::IsNan | Unary::IsInf => a,
                        op => Scalar::raw(DType::F32, Kind::Unary(op, a)),
                    },
                    k => match Binary::ALL[k % Binary::ALL.len()] {
                        op if op.is_comparison() => b,
                        op => Scalar::raw(DType::F32, Kind::Binary(op, a, b)),
                    },
                }
            })
        })
    }

    proptest! {
        #[test]
        fn text_round_trips(s in any_scalar()) {
            let text = s.to_string();
            prop_assert_eq!(text.parse::<Scalar>().map_err(|e| format!("{e}: {text}")), Ok(s));
        }
    }
}
