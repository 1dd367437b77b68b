//! A small writer of LLVM assembly: types, values and instructions of one function as text.
//!
//! Text keeps the emitter independent of LLVM's C API and version; the parser of LLVM checks every line of it. A [`Val`] is
//! `Copy`: its type, and an operand that prints as `%t7` or a constant. An operation on a scalar and a vector splats the scalar.

use crate::arch::Arch;
use std::collections::BTreeSet;
use std::fmt::{self, Display, Write};

/// Element types of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Elem {
    /// A bool.
    I1,
    /// 8 bits.
    I8,
    /// 16 bits.
    I16,
    /// 32 bits.
    I32,
    /// 64 bits.
    I64,
    /// Half precision, only inside conversions.
    Half,
    /// bf16, only inside instructions for it.
    Brain,
    /// Single precision.
    F32,
    /// Double precision.
    F64,
    /// An address.
    Ptr,
}

impl Elem {
    /// Width of an integer or float.
    pub fn bits(self) -> u32 {
        match self {
            Elem::I1 => 1,
            Elem::I8 => 8,
            Elem::I16 | Elem::Half | Elem::Brain => 16,
            Elem::I32 | Elem::F32 => 32,
            Elem::I64 | Elem::F64 | Elem::Ptr => 64,
        }
    }
    /// True for the floats.
    pub fn is_float(self) -> bool {
        matches!(self, Elem::Half | Elem::Brain | Elem::F32 | Elem::F64)
    }
    fn mangled(self) -> &'static str {
        match self {
            Elem::I1 => "i1",
            Elem::I8 => "i8",
            Elem::I16 => "i16",
            Elem::I32 => "i32",
            Elem::I64 => "i64",
            Elem::Half => "f16",
            Elem::Brain => "bf16",
            Elem::F32 => "f32",
            Elem::F64 => "f64",
            Elem::Ptr => "p0",
        }
    }
}

impl Display for Elem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Elem::Half => "half",
            Elem::Brain => "bfloat",
            Elem::F32 => "float",
            Elem::F64 => "double",
            Elem::Ptr => "ptr",
            other => other.mangled(),
        })
    }
}

/// An element type and a number of lanes; 1 is a scalar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ty {
    /// Type of one lane.
    pub elem: Elem,
    /// Number of lanes.
    pub lanes: u32,
}

impl Ty {
    /// A vector, or a scalar if `lanes` is 1.
    pub fn new(elem: Elem, lanes: u32) -> Ty {
        Ty { elem, lanes }
    }
    /// The same lanes of another element.
    pub fn with(self, elem: Elem) -> Ty {
        Ty { elem, ..self }
    }
    /// How it appears in the name of an overloaded intrinsic: `v8f32`.
    pub fn mangled(self) -> String {
        if self.lanes == 1 { self.elem.mangled().into() } else { format!("v{}{}", self.lanes, self.elem.mangled()) }
    }
}

impl Display for Ty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.lanes == 1 { write!(f, "{}", self.elem) } else { write!(f, "<{} x {}>", self.lanes, self.elem) }
    }
}

/// What a value prints as.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operand {
    /// `%t7`.
    Temp(u32),
    /// An integer, in all lanes.
    Int(i64),
    /// A float by the bits of the `f64` of its value, in all lanes.
    Float(u64),
    /// `first + step * lane`.
    Lanes(i64, i64),
    /// Entry of [`Fun::texts`]: parameters and globals.
    Text(u32),
    /// Any value.
    Poison,
}

/// A value: type and operand.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Val {
    /// Its type.
    pub ty: Ty,
    /// How to name it.
    pub op: Operand,
}

impl Val {
    /// An integer constant.
    pub fn int(elem: Elem, value: i64) -> Val {
        Val { ty: Ty::new(elem, 1), op: Operand::Int(value) }
    }
    /// An `i64` constant.
    pub fn i64(value: i64) -> Val {
        Val::int(Elem::I64, value)
    }
    /// A bool constant.
    pub fn bool(value: bool) -> Val {
        Val::int(Elem::I1, i64::from(value))
    }
    /// A float constant; `value` must be a value of the type.
    pub fn float(elem: Elem, value: f64) -> Val {
        let value = if value.is_nan() { f64::NAN } else { value };
        Val { ty: Ty::new(elem, 1), op: Operand::Float(value.to_bits()) }
    }
    /// Its value, for an integer constant equal in all lanes.
    pub fn known(self) -> Option<i64> {
        match self.op {
            Operand::Int(v) => Some(v),
            _ => None,
        }
    }
    /// Its value, for a float constant equal in all lanes.
    pub fn known_float(self) -> Option<f64> {
        match self.op {
            Operand::Float(bits) => Some(f64::from_bits(bits)),
            _ => None,
        }
    }
    /// Is it one value for all lanes?
    pub fn uniform(self) -> bool {
        self.ty.lanes == 1
    }
}

/// A basic block's name: `L3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(u32);

impl Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "L{}", self.0)
    }
}

/// A function in the making.
#[derive(Default)]
pub struct Fun {
    /// Text of the blocks so far, without the entry block's allocas.
    body: String,
    /// Allocas, printed first.
    allocas: String,
    /// Declarations of the intrinsics it calls.
    pub declarations: BTreeSet<String>,
    /// Names of [`Helper`] functions it calls.
    pub helpers: BTreeSet<crate::helpers::Helper>,
    /// Constants that live in memory: name and definition.
    pub globals: BTreeSet<String>,
    /// The architecture.
    pub arch: Arch,
    /// Does the machine have fused multiply-add?
    pub fma: bool,
    /// Does it convert half precision?
    pub f16c: bool,
    /// Has it arithmetic on it?
    pub f16_fma: bool,
    texts: Vec<String>,
    temps: u32,
    labels: u32,
    current: Option<Label>,
}

impl Fun {
    /// A new function; its first block is open.
    pub fn new(arch: Arch) -> Fun {
        let mut fun = Fun { arch, ..Fun::default() };
        let first = fun.label();
        fun.current = Some(first);
        fun
    }
    /// The finished text between the braces.
    pub fn finish(self) -> String {
        format!("L0:\n{}{}", self.allocas, self.body)
    }
    /// A value that prints as `text`.
    pub fn named(&mut self, ty: Ty, text: &str) -> Val {
        self.texts.push(text.into());
        Val { ty, op: Operand::Text(self.texts.len() as u32 - 1) }
    }

    /// The operand of `v` without its type.
    pub fn o(&self, v: Val) -> String {
        let one = match v.op {
            Operand::Temp(n) => return format!("%t{n}"),
            Operand::Text(n) => return self.texts[n as usize].clone(),
            Operand::Poison => return "poison".into(),
            Operand::Lanes(first, step) => {
                let lanes: Vec<String> = (0..i64::from(v.ty.lanes))
                    .map(|l| format!("{} {}", v.ty.elem, narrow(v.ty.elem, first.wrapping_add(step.wrapping_mul(l)))))
                    .collect();
                return format!("<{}>", lanes.join(", "));
            }
            Operand::Int(i) if v.ty.elem == Elem::I1 => (i != 0).to_string(),
            Operand::Int(i) => narrow(v.ty.elem, i).to_string(),
            Operand::Float(bits) => format!("0x{bits:016X}"),
        };
        if v.ty.lanes == 1 { one } else { format!("splat ({} {one})", v.ty.elem) }
    }
    /// `type operand`.
    pub fn t(&self, v: Val) -> String {
        format!("{} {}", v.ty, self.o(v))
    }

    /// An instruction with a result.
    pub fn inst(&mut self, ty: Ty, text: impl Display) -> Val {
        let n = self.temps;
        self.temps += 1;
        let _ = writeln!(self.body, "  %t{n} = {text}");
        Val { ty, op: Operand::Temp(n) }
    }
    /// An instruction without one.
    pub fn line(&mut self, text: impl Display) {
        let _ = writeln!(self.body, "  {text}");
    }
    /// Stack memory that lives as long as the function runs.
    pub fn alloca(&mut self, bytes: u64, align: u32) -> Val {
        let n = self.temps;
        self.temps += 1;
        let _ = writeln!(self.allocas, "  %t{n} = alloca [{bytes} x i8], align {align}");
        Val { ty: Ty::new(Elem::Ptr, 1), op: Operand::Temp(n) }
    }
    /// A private constant in memory with the elements of `v` (a constant); returns its address.
    pub fn global(&mut self, v: Val) -> Val {
        let bits = match v.op {
            Operand::Int(i) => i as u64,
            Operand::Float(b) => b,
            _ => unreachable!("only constants lie in memory"),
        };
        let name = format!("@const.{}.{bits:x}", v.ty.mangled());
        self.globals.insert(format!("{name} = private unnamed_addr constant {}, align 64", self.t(v)));
        self.named(Ty::new(Elem::Ptr, 1), &name)
    }

    /// A new block name.
    pub fn label(&mut self) -> Label {
        self.labels += 1;
        Label(self.labels - 1)
    }
    /// The open block.
    pub fn here(&self) -> Label {
        self.current.expect("a block is open")
    }
    /// Opens a block.
    pub fn start(&mut self, label: Label) {
        debug_assert!(self.current.is_none(), "the block before {label} has no end");
        let _ = writeln!(self.body, "{label}:");
        self.current = Some(label);
    }
    /// Ends the block with a jump.
    pub fn br(&mut self, to: Label) {
        self.line(format_args!("br label %{to}"));
        self.current = None;
    }
    /// Ends the block with a branch on a scalar bool.
    pub fn br_if(&mut self, cond: Val, yes: Label, no: Label) {
        let c = self.o(cond);
        self.line(format_args!("br i1 {c}, label %{yes}, label %{no}"));
        self.current = None;
    }
    /// Ends the block with the function's result.
    pub fn ret(&mut self, v: Val) {
        let v = self.t(v);
        self.line(format_args!("ret {v}"));
        self.current = None;
    }
    /// A value that depends on the block one comes from. It must come first in the block; operands may be named later.
    pub fn phi(&mut self, ty: Ty, incoming: &[(String, Label)]) -> Val {
        let list: Vec<String> = incoming.iter().map(|(v, l)| format!("[ {v}, %{l} ]")).collect();
        self.inst(ty, format_args!("phi {ty} {}", list.join(", ")))
    }

    /// `v` in all of `lanes` lanes (constants for free).
    pub fn splat(&mut self, v: Val, lanes: u32) -> Val {
        if v.ty.lanes == lanes {
            return v;
        }
        assert!(v.uniform(), "splat of a vector");
        let ty = Ty::new(v.ty.elem, lanes);
        if matches!(v.op, Operand::Int(_) | Operand::Float(_) | Operand::Poison) {
            return Val { ty, op: v.op };
        }
        let one = self.t(v);
        let first = self.inst(ty, format_args!("insertelement {ty} poison, {one}, i64 0"));
        let first = self.t(first);
        self.inst(ty, format_args!("shufflevector {first}, {ty} poison, <{lanes} x i32> zeroinitializer"))
    }
    fn join<const N: usize>(&mut self, vals: [Val; N]) -> [Val; N] {
        let lanes = vals.iter().map(|v| v.ty.lanes).max().unwrap_or(1);
        vals.map(|v| self.splat(v, lanes))
    }

    /// A two-operand instruction (`add`, `fmul`, ...).
    pub fn bin(&mut self, op: &str, a: Val, b: Val) -> Val {
        let [a, b] = self.join([a, b]);
        debug_assert_eq!(a.ty, b.ty, "{op}");
        if let (Some(x), Some(y)) = (a.known(), b.known())
            && let Some(folded) = fold(op, a.ty.elem, x, y)
        {
            return Val { ty: a.ty, op: Operand::Int(folded) };
        }
        match (op, a.known(), b.known()) {
            ("add" | "or" | "xor", Some(0), _) => return b,
            ("add" | "sub" | "or" | "xor", _, Some(0)) | ("mul", _, Some(1)) => return a,
            ("mul", Some(1), _) => return b,
            ("and", Some(k), _) if k == -1 || (a.ty.elem == Elem::I1 && k == 1) => return b,
            ("and", _, Some(k)) if k == -1 || (a.ty.elem == Elem::I1 && k == 1) => return a,
            ("and", Some(0), _) => return a,
            ("and", _, Some(0)) => return b,
            _ => {}
        }
        let (x, y) = (self.t(a), self.o(b));
        self.inst(a.ty, format_args!("{op} {x}, {y}"))
    }
    /// `icmp slt`, `fcmp uno`, ...
    pub fn cmp(&mut self, op: &str, a: Val, b: Val) -> Val {
        let [a, b] = self.join([a, b]);
        debug_assert_eq!(a.ty, b.ty, "{op}");
        if let (Some(x), Some(y)) = (a.known(), b.known())
            && let Some(r) = compare(op, a.ty.elem, x, y)
        {
            return Val { ty: a.ty.with(Elem::I1), op: Operand::Int(i64::from(r)) };
        }
        let (x, y) = (self.t(a), self.o(b));
        self.inst(a.ty.with(Elem::I1), format_args!("{op} {x}, {y}"))
    }
    /// `c ? a : b`; a scalar condition may choose between vectors.
    pub fn select(&mut self, c: Val, a: Val, b: Val) -> Val {
        match c.known() {
            Some(0) => return b,
            Some(_) => return a,
            None if a == b => return a,
            None => {}
        }
        let [a, b] = self.join([a, b]);
        let (a, b) = (self.splat(a, a.ty.lanes.max(c.ty.lanes)), self.splat(b, b.ty.lanes.max(c.ty.lanes)));
        let (c, x, y) = (self.t(c), self.t(a), self.t(b));
        self.inst(a.ty, format_args!("select {c}, {x}, {y}"))
    }
    /// A conversion instruction (`zext`, `fptrunc`, `bitcast`, ...), or nothing if the type is the same.
    pub fn cast(&mut self, op: &str, v: Val, elem: Elem) -> Val {
        let ty = v.ty.with(elem);
        if v.ty == ty {
            return v;
        }
        if let (Some(k), "zext" | "sext" | "trunc") = (v.known(), op) {
            let value = match op {
                "zext" if v.ty.elem.bits() < 64 => k & ((1 << v.ty.elem.bits()) - 1),
                "trunc" => narrow(elem, k),
                _ => narrow(v.ty.elem, k),
            };
            return Val { ty, op: Operand::Int(value) };
        }
        let x = self.t(v);
        self.inst(ty, format_args!("{op} {x} to {ty}"))
    }
    /// A call of an intrinsic overloaded on `over`; `args` are splatted to its lanes where they are of its element type.
    pub fn intrinsic(&mut self, name: &str, over: &[Ty], ret: Ty, args: &[Val]) -> Val {
        let call = self.call_text(name, over, Some(ret), args);
        self.inst(ret, call)
    }
    /// A call of an intrinsic without a result.
    pub fn intrinsic_void(&mut self, name: &str, over: &[Ty], args: &[Val]) {
        let call = self.call_text(name, over, None, args);
        self.line(call);
    }
    fn call_text(&mut self, name: &str, over: &[Ty], ret: Option<Ty>, args: &[Val]) -> String {
        let mut full = format!("@{name}");
        for ty in over {
            let _ = write!(full, ".{}", ty.mangled());
        }
        let types: Vec<String> = args.iter().map(|a| a.ty.to_string()).collect();
        let vals: Vec<String> = args.iter().map(|&a| self.t(a)).collect();
        let ret = ret.map_or("void".into(), |t| t.to_string());
        self.declarations.insert(format!("declare {ret} {full}({})", types.join(", ")));
        format!("call {ret} {full}({})", vals.join(", "))
    }
    /// An intrinsic whose operands and result have one type (`llvm.fma`, `llvm.floor`, ...).
    pub fn same<const N: usize>(&mut self, name: &str, args: [Val; N]) -> Val {
        let args = self.join(args);
        self.intrinsic(name, &[args[0].ty], args[0].ty, &args)
    }
    /// One lane of a vector.
    pub fn extract(&mut self, v: Val, lane: u32) -> Val {
        if v.uniform() {
            return v;
        }
        if matches!(v.op, Operand::Int(_) | Operand::Float(_) | Operand::Poison) {
            return Val { ty: Ty::new(v.ty.elem, 1), op: v.op };
        }
        let x = self.t(v);
        self.inst(Ty::new(v.ty.elem, 1), format_args!("extractelement {x}, i64 {lane}"))
    }
    /// `v` with one lane replaced.
    pub fn insert(&mut self, v: Val, one: Val, lane: u32) -> Val {
        let (x, y) = (self.t(v), self.t(one));
        self.inst(v.ty, format_args!("insertelement {x}, {y}, i64 {lane}"))
    }
    /// Logical not of a bool.
    pub fn not(&mut self, v: Val) -> Val {
        self.bin("xor", v, Val::bool(true))
    }
    /// Does any lane hold?
    pub fn any(&mut self, v: Val) -> Val {
        if v.uniform() {
            return v;
        }
        let x = self.t(v);
        let lanes = v.ty.lanes;
        let bits = self.inst(Ty::new(Elem::I64, 1), format_args!("bitcast {x} to i{lanes}"));
        let bits = self.o(bits);
        self.inst(Ty::new(Elem::I1, 1), format_args!("icmp ne i{lanes} {bits}, 0"))
    }
    /// `base + elem * offset`.
    pub fn gep(&mut self, base: Val, elem: Elem, offset: Val) -> Val {
        if offset.known() == Some(0) && offset.uniform() {
            return base;
        }
        let ty = Ty::new(Elem::Ptr, offset.ty.lanes.max(base.ty.lanes));
        let (p, o) = (self.t(base), self.t(offset));
        self.inst(ty, format_args!("getelementptr inbounds {elem}, {p}, {o}"))
    }
    /// A load of consecutive elements.
    pub fn load(&mut self, ty: Ty, ptr: Val, align: u32) -> Val {
        let p = self.t(ptr);
        self.inst(ty, format_args!("load {ty}, {p}, align {align}"))
    }
    /// A store of consecutive elements.
    pub fn store(&mut self, v: Val, ptr: Val, align: u32) {
        let (v, p) = (self.t(v), self.t(ptr));
        self.line(format_args!("store {v}, {p}, align {align}"));
    }
}

/// The low bits of `v`, sign-extended.
fn narrow(elem: Elem, v: i64) -> i64 {
    let shift = 64 - elem.bits();
    (v << shift) >> shift
}

fn fold(op: &str, elem: Elem, x: i64, y: i64) -> Option<i64> {
    let r = match op {
        "add" => x.wrapping_add(y),
        "sub" => x.wrapping_sub(y),
        "mul" => x.wrapping_mul(y),
        "and" => x & y,
        "or" => x | y,
        "xor" => x ^ y,
        _ => return None,
    };
    Some(if elem == Elem::I1 { r & 1 } else { narrow(elem, r) })
}

fn compare(op: &str, elem: Elem, x: i64, y: i64) -> Option<bool> {
    let (x, y) = (narrow(elem, x), narrow(elem, y));
    let mask = if elem.bits() == 64 { u64::MAX } else { (1 << elem.bits()) - 1 };
    let (ux, uy) = (x as u64 & mask, y as u64 & mask);
    Some(match op {
        "icmp eq" => x == y,
        "icmp ne" => x != y,
        "icmp slt" => x < y,
        "icmp sle" => x <= y,
        "icmp sgt" => x > y,
        "icmp sge" => x >= y,
        "icmp ult" => ux < uy,
        "icmp ule" => ux <= uy,
        "icmp ugt" => ux > uy,
        "icmp uge" => ux >= uy,
        _ => return None,
    })
}
