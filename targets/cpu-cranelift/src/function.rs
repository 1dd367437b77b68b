//! A function that is being written: values of one lane or of many as Cranelift's values, memory and control.
//!
//! Cranelift has vectors of 128 bits. A value of more lanes is a list of *pieces*, one of fewer lanes a single piece whose upper lanes are
//! anything: no operation on vectors traps, and nothing looks at those lanes. A bool that differs between lanes is a *mask*: integers that are all
//! ones or zero, of whatever width the comparison had that made it, brought to another one where needed. Arithmetic is in `arithmetic`,
//! conversions in `convert`. What has no vector instruction is done lane by lane there, so that nobody else has to know.

use crate::convert::Resize;
use crate::helpers::Helper;
use crate::values::{Elem, Operand, Ty, Val};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{self, Type};
use cranelift_codegen::ir::{Block, BlockArg, ConstantData, Endianness, FuncRef, InstBuilder, MemFlagsData, Value};
use cranelift_frontend::FunctionBuilder;
use std::collections::BTreeMap;

/// A function that is being written.
pub struct Fun<'a> {
    pub b: FunctionBuilder<'a>,
    /// Fused multiply-add is an instruction.
    pub fma: bool,
    /// The machine is one of Arm's, whose vectors have other instructions.
    pub arm: bool,
    /// Functions of the image that it calls.
    pub helpers: BTreeMap<Helper, FuncRef>,
    /// Of two factors of a tile of products, the one that all lanes share has fewer uses.
    pub shared_first: bool,
    lists: Vec<Vec<Value>>,
}

/// Vectors that so many lanes of so many bits take.
pub fn count(lanes: u32, bits: u32) -> usize {
    (lanes * bits / 128).max(1) as usize
}

impl<'a> Fun<'a> {
    pub fn new(b: FunctionBuilder<'a>, fma: bool, arm: bool) -> Fun<'a> {
        Fun { b, fma, arm, helpers: BTreeMap::new(), shared_first: false, lists: vec![] }
    }

    /// A value of pieces.
    pub fn many(&mut self, ty: Ty, pieces: Vec<Value>) -> Val {
        self.lists.push(pieces);
        Val { ty, op: Operand::Many(self.lists.len() as u32 - 1) }
    }
    pub fn constant(&mut self, ty: Type, bytes: &[u8]) -> Value {
        let constant = self.b.func.dfg.constants.insert(ConstantData::from(bytes));
        self.b.ins().vconst(ty, constant)
    }
    /// A vector of constants, `lane` gives the bits of each.
    pub fn vector_of(&mut self, elem: Elem, lane: impl Fn(i64) -> u64) -> Value {
        let bytes = elem.bits() as usize / 8;
        let all: Vec<u8> = (0..16 / bytes as i64).flat_map(|i| lane(i).to_le_bytes()[..bytes].to_vec()).collect();
        self.constant(elem.vector(), &all)
    }
    /// The value that all lanes share.
    pub fn value(&mut self, v: Val) -> Value {
        debug_assert!(v.uniform());
        match v.op {
            Operand::One(value) => value,
            Operand::Int(i) => {
                let bits = v.ty.elem.scalar().bits();
                let mask = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
                self.b.ins().iconst(v.ty.elem.scalar(), (i as u64 & mask) as i64)
            }
            Operand::Float(bits) if v.ty.elem == Elem::F32 => self.b.ins().f32const(f64::from_bits(bits) as f32),
            Operand::Float(bits) => self.b.ins().f64const(f64::from_bits(bits)),
            Operand::Lanes(..) | Operand::Many(_) => unreachable!("one value for all lanes"),
        }
    }
    /// The pieces of a vector that is no mask.
    pub fn pieces(&mut self, v: Val) -> Vec<Value> {
        let elem = v.ty.elem;
        debug_assert!(v.ty.lanes > 1 && elem != Elem::I1);
        let n = count(v.ty.lanes, elem.bits());
        match v.op {
            Operand::Many(list) => self.lists[list as usize].clone(),
            Operand::Int(i) => vec![self.vector_of(elem, |_| i as u64); n],
            Operand::Float(bits) => {
                let bits = if elem == Elem::F32 { u64::from((f64::from_bits(bits) as f32).to_bits()) } else { bits };
                vec![self.vector_of(elem, |_| bits); n]
            }
            Operand::Lanes(first, step) => {
                let each = i64::from(128 / elem.bits());
                let at = |piece: i64, lane: i64| first.wrapping_add(step.wrapping_mul(piece * each + lane)) as u64;
                (0..n as i64).map(|p| self.vector_of(elem, |lane| at(p, lane))).collect()
            }
            Operand::One(_) => unreachable!("a vector has pieces"),
        }
    }
    /// The pieces of a mask for lanes of so many bits.
    pub fn mask(&mut self, v: Val, bits: u32) -> Vec<Value> {
        debug_assert!(v.ty.lanes > 1 && v.ty.elem == Elem::I1);
        match v.op {
            Operand::Int(i) => {
                let all = if i == 0 { 0 } else { u64::MAX };
                vec![self.vector_of(Elem::int(bits), |_| all); count(v.ty.lanes, bits)]
            }
            Operand::Many(list) => {
                let pieces = self.lists[list as usize].clone();
                let from = self.width(&pieces);
                self.resize(pieces, v.ty.lanes, from, bits, Resize::Mask)
            }
            _ => unreachable!("a mask is a constant or has pieces"),
        }
    }
    /// Bits of each lane of pieces.
    pub fn width(&self, pieces: &[Value]) -> u32 {
        self.b.func.dfg.value_type(pieces[0]).lane_bits()
    }
    /// Bits of the lanes that a mask has, if it is no constant.
    pub fn mask_width(&self, v: Val) -> Option<u32> {
        match v.op {
            Operand::Many(list) => Some(self.width(&self.lists[list as usize])),
            _ => None,
        }
    }
    pub fn cast_vector(&mut self, ty: Type, v: Value) -> Value {
        if self.b.func.dfg.value_type(v) == ty {
            return v;
        }
        self.b.ins().bitcast(ty, MemFlagsData::new().with_endianness(Endianness::Little), v)
    }
    /// Bytes of two vectors by their numbers.
    pub fn shuffle(&mut self, a: Value, b: Value, order: [u8; 16]) -> Value {
        let ty = self.b.func.dfg.value_type(a);
        let (a, b) = (self.cast_vector(types::I8X16, a), self.cast_vector(types::I8X16, b));
        let order = self.b.func.dfg.immediates.push(ConstantData::from(&order[..]));
        let r = self.b.ins().shuffle(a, b, order);
        self.cast_vector(ty, r)
    }
    /// The upper half in both halves.
    pub fn upper(&mut self, v: Value) -> Value {
        self.shuffle(v, v, [8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15])
    }

    /// The value of each lane; bools are bytes, 0 or 1.
    pub fn lanes(&mut self, v: Val) -> Vec<Value> {
        let lanes = v.ty.lanes;
        if lanes == 1 {
            return vec![self.value(v)];
        }
        match v.op {
            Operand::Int(_) | Operand::Float(_) => {
                let one = self.value(Val { ty: Ty::new(v.ty.elem, 1), op: v.op });
                return vec![one; lanes as usize];
            }
            Operand::Lanes(first, step) => {
                let at = |i: i64| first.wrapping_add(step.wrapping_mul(i));
                return (0..i64::from(lanes)).map(|i| self.value(Val::int(v.ty.elem, at(i)))).collect();
            }
            Operand::One(_) | Operand::Many(_) => {}
        }
        (0..lanes).map(|lane| self.lane(v, lane)).collect()
    }
    /// The value of one lane of a vector with pieces.
    pub fn lane(&mut self, v: Val, lane: u32) -> Value {
        let Operand::Many(list) = v.op else { unreachable!("a vector with pieces") };
        let pieces = &self.lists[list as usize];
        let each = 128 / self.width(pieces);
        let piece = pieces[(lane / each) as usize];
        let x = self.b.ins().extractlane(piece, (lane % each) as u8);
        if v.ty.elem == Elem::I1 { self.b.ins().icmp_imm_u(IntCC::NotEqual, x, 0) } else { x }
    }
    /// One lane.
    pub fn extract(&mut self, v: Val, lane: u32) -> Val {
        let ty = Ty::new(v.ty.elem, 1);
        match v.op {
            Operand::Int(_) | Operand::Float(_) | Operand::One(_) => Val { ty, op: v.op },
            Operand::Lanes(first, step) => Val::int(v.ty.elem, first.wrapping_add(step.wrapping_mul(i64::from(lane)))),
            Operand::Many(_) => {
                let x = self.lane(v, lane);
                Val::one(v.ty.elem, x)
            }
        }
    }
    /// A vector of one value for each lane.
    pub fn build(&mut self, elem: Elem, lanes: &[Value]) -> Val {
        let ty = Ty::new(elem, lanes.len() as u32);
        if lanes.len() == 1 {
            return Val::one(elem, lanes[0]);
        }
        if elem == Elem::I1 {
            let bytes: Vec<Value> = lanes.iter().map(|&l| self.b.ins().ineg(l)).collect();
            let v = self.build(Elem::I8, &bytes);
            return Val { ty, op: v.op };
        }
        let pieces = lanes
            .chunks((128 / elem.bits()) as usize)
            .map(|part| {
                let first = if elem.bits() < 32 {
                    let wide = self.b.ins().uextend(types::I32, part[0]);
                    let v = self.b.ins().scalar_to_vector(types::I32X4, wide);
                    self.cast_vector(elem.vector(), v)
                } else {
                    self.b.ins().scalar_to_vector(elem.vector(), part[0])
                };
                part.iter().enumerate().skip(1).fold(first, |v, (i, &x)| self.b.ins().insertlane(v, x, i as u8))
            })
            .collect();
        self.many(ty, pieces)
    }

    /// `v` in all of `lanes` lanes (constants for free).
    pub fn splat(&mut self, v: Val, lanes: u32) -> Val {
        if v.ty.lanes == lanes {
            return v;
        }
        assert!(v.uniform(), "splat of a vector");
        let ty = Ty::new(v.ty.elem, lanes);
        match v.op {
            Operand::One(value) => {
                let (value, bits) = match v.ty.elem {
                    Elem::I1 => (self.b.ins().bmask(types::I32, value), 32),
                    e => (value, e.bits()),
                };
                let vector = if v.ty.elem == Elem::I1 { types::I32X4 } else { v.ty.elem.vector() };
                let piece = self.b.ins().splat(vector, value);
                self.many(ty, vec![piece; count(lanes, bits)])
            }
            op => Val { ty, op },
        }
    }
    pub fn join<const N: usize>(&mut self, vals: [Val; N]) -> [Val; N] {
        let lanes = vals.iter().map(|v| v.ty.lanes).max().unwrap_or(1);
        vals.map(|v| self.splat(v, lanes))
    }

    /// The lanes in reverse order.
    pub fn reversed(&mut self, v: Val) -> Val {
        let lanes: Vec<Value> = self.lanes(v).into_iter().rev().collect();
        self.build(v.ty.elem, &lanes)
    }

    /// What lies at an address, `offset` bytes behind it: one element or a vector of neighbours.
    pub fn load(&mut self, ty: Ty, flags: MemFlagsData, at: Value, offset: i32) -> Val {
        if ty.lanes == 1 {
            let v = self.b.ins().load(ty.elem.scalar(), flags, at, offset);
            return Val::one(ty.elem, v);
        }
        let vector = ty.elem.vector();
        let pieces = match ty.lanes * ty.elem.bits() {
            64 => {
                let v = self.b.ins().load(types::F64, flags, at, offset);
                let v = self.b.ins().scalar_to_vector(types::F64X2, v);
                vec![self.cast_vector(vector, v)]
            }
            32 => {
                let v = self.b.ins().load(types::F32, flags, at, offset);
                let v = self.b.ins().scalar_to_vector(types::F32X4, v);
                vec![self.cast_vector(vector, v)]
            }
            16 => {
                let v = self.b.ins().load(types::I16, flags, at, offset);
                let v = self.b.ins().uextend(types::I32, v);
                let v = self.b.ins().scalar_to_vector(types::I32X4, v);
                vec![self.cast_vector(vector, v)]
            }
            bits => (0..bits as i32 / 128).map(|i| self.b.ins().load(vector, flags, at, offset + 16 * i)).collect(),
        };
        self.many(ty, pieces)
    }
    /// Writes it to an address, `offset` bytes behind it.
    pub fn store(&mut self, flags: MemFlagsData, v: Val, at: Value, offset: i32) {
        if v.uniform() {
            let x = self.value(v);
            self.b.ins().store(flags, x, at, offset);
            return;
        }
        let pieces = self.pieces(v);
        let part = match v.ty.lanes * v.ty.elem.bits() {
            64 => types::F64X2,
            32 => types::F32X4,
            16 => types::I16X8,
            _ => {
                for (i, p) in pieces.into_iter().enumerate() {
                    self.b.ins().store(flags, p, at, offset + 16 * i as i32);
                }
                return;
            }
        };
        let whole = self.cast_vector(part, pieces[0]);
        let x = self.b.ins().extractlane(whole, 0u8);
        self.b.ins().store(flags, x, at, offset);
    }

    /// A new block.
    pub fn block(&mut self) -> Block {
        self.b.create_block()
    }
    /// Goes on in a block to which no more jumps come.
    pub fn begin(&mut self, block: Block) {
        self.b.switch_to_block(block);
        self.b.seal_block(block);
    }
    pub fn jump(&mut self, to: Block, args: &[Value]) {
        let args: Vec<BlockArg> = args.iter().map(|&v| BlockArg::Value(v)).collect();
        self.b.ins().jump(to, &args);
    }
    /// A branch on a bool of one lane.
    pub fn branch(&mut self, cond: Val, yes: Block, no: Block) {
        let none: [BlockArg; 0] = [];
        let c = self.value(cond);
        self.b.ins().brif(c, yes, &none, no, &none);
    }
}
