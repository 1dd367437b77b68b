//! The loop interpreter: runs a [`Kernel`] statement by statement, element by element, with every access checked.
//!
//! It defines the loop IR in executable form. Lanes of a vector loop run together: each statement is done by all active lanes
//! before the next one begins, and a store becomes visible after all lanes have evaluated it. Memory of `Tile`, `Reg` and `Shared`
//! buffers is poisoned at each `Alloc` (NaN for floats), so that a value used before it is stored shows.

use super::{Buffer, Kernel, LoopKind, Space, Stmt};
use infc_ir::dtype::Class;
use infc_ir::expr::Node;
use infc_ir::{DType, Expr, Scalar, eval};
use std::cell::RefCell;

/// Why a kernel ended early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A `Check` did not hold; its code.
    Check(u32),
    /// The kernel is wrong: an access outside a buffer, an unbound variable. Says which.
    Internal(String),
}

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Stop::Check(code) => write!(f, "check {code} failed"),
            Stop::Internal(what) => write!(f, "internal error: {what}"),
        }
    }
}
impl std::error::Error for Stop {}

/// Runs all tasks of a kernel. `symbols` are the values of `kernel.symbols`; `buffers` the bytes of its global buffers.
pub fn run(kernel: &Kernel, symbols: &[i64], buffers: &mut [Vec<u8>]) -> Result<(), Stop> {
    let globals = kernel.buffers.iter().filter(|b| b.space == Space::Global).count();
    if globals != buffers.len() || symbols.len() != kernel.symbols.len() {
        let given = format!("{} buffers and {} symbols are given", buffers.len(), symbols.len());
        return Err(Stop::Internal(format!("{} takes {globals} and {}; {given}", kernel.name, kernel.symbols.len())));
    }
    let mut machine = Machine { kernel, symbols, memory: vec![], shapes: vec![] };
    for (i, b) in kernel.buffers.iter().enumerate() {
        let shape = Shape { dims: machine.fixed(&b.dims)?, strides: machine.fixed(&b.strides)? };
        machine.memory.push(buffers.get_mut(i).map(std::mem::take).unwrap_or_else(|| poison(b.dtype, shape.span())));
        machine.shapes.push(shape);
    }
    let result = machine.tasks();
    for (place, bytes) in buffers.iter_mut().zip(machine.memory) {
        *place = bytes;
    }
    result
}

/// Bytes that look like nothing sensible.
fn poison(dtype: DType, count: usize) -> Vec<u8> {
    match dtype.class() {
        Class::Float => {
            let nan = eval::to_memory(dtype, eval::round_float(dtype, f64::NAN).to_bits()).to_le_bytes();
            nan[..dtype.bytes()].repeat(count)
        }
        Class::Bool => vec![1; count],
        Class::Signed | Class::Unsigned | Class::Complex | Class::Text => vec![0xa5; count * dtype.bytes()],
    }
}

struct Shape {
    dims: Vec<i64>,
    strides: Vec<i64>,
}

impl Shape {
    fn span(&self) -> usize {
        if self.dims.iter().any(|&d| d <= 0) {
            return 0;
        }
        let last: i64 = self.dims.iter().zip(&self.strides).map(|(&d, &s)| (d - 1) * s).sum();
        usize::try_from(last + 1).unwrap_or(0)
    }
}

/// One lane: values of variables and locals.
#[derive(Clone, Default)]
struct Lane {
    vars: Vec<Option<i64>>,
    locals: Vec<Option<u64>>,
}

fn put<T: Clone>(list: &mut Vec<Option<T>>, at: u32, value: T) {
    if list.len() <= at as usize {
        list.resize(at as usize + 1, None);
    }
    list[at as usize] = Some(value);
}

struct Machine<'a> {
    kernel: &'a Kernel,
    symbols: &'a [i64],
    memory: Vec<Vec<u8>>,
    shapes: Vec<Shape>,
}

impl Machine<'_> {
    fn leaf(&self, lane: &Lane, e: Expr) -> Option<i64> {
        match e.node() {
            Node::Var(v) => lane.vars.get(*v as usize).copied().flatten(),
            Node::Sym(s) => self.symbols[self.kernel.symbols.iter().position(|k| k == s)?].into(),
            _ => None,
        }
    }
    fn index(&self, lane: &Lane, e: Expr) -> Result<i64, Stop> {
        e.eval(&|l| self.leaf(lane, l)).ok_or_else(|| Stop::Internal(format!("{e} uses a variable or symbol without a value")))
    }
    fn fixed(&self, exprs: &[Expr]) -> Result<Vec<i64>, Stop> {
        exprs.iter().map(|&e| self.index(&Lane::default(), e)).collect()
    }

    fn tasks(&mut self) -> Result<(), Stop> {
        for task in 0..self.index(&Lane::default(), self.kernel.tasks)? {
            let mut lane = Lane::default();
            put(&mut lane.vars, self.kernel.task, task);
            self.all(&self.kernel.body, &mut [lane], &[0])?;
        }
        Ok(())
    }

    fn all(&mut self, body: &[Stmt], lanes: &mut [Lane], active: &[usize]) -> Result<(), Stop> {
        if active.is_empty() {
            return Ok(());
        }
        body.iter().try_for_each(|s| self.statement(s, lanes, active))
    }

    fn statement(&mut self, s: &Stmt, lanes: &mut [Lane], active: &[usize]) -> Result<(), Stop> {
        match s {
            Stmt::For { var, extent, kind, body } => {
                let extent = self.uniform(*extent, lanes, active)?;
                if *kind == LoopKind::Vector {
                    let copies = active.iter().flat_map(|&l| (0..extent).map(move |i| (l, i)));
                    let mut inner: Vec<Lane> = vec![];
                    for (l, i) in copies {
                        let mut lane = lanes[l].clone();
                        put(&mut lane.vars, *var, i);
                        inner.push(lane);
                    }
                    let all: Vec<usize> = (0..inner.len()).collect();
                    return self.all(body, &mut inner, &all);
                }
                for i in 0..extent {
                    active.iter().for_each(|&l| put(&mut lanes[l].vars, *var, i));
                    self.all(body, lanes, active)?;
                }
                Ok(())
            }
            Stmt::While { cond, body } => {
                while self.value(*cond, &lanes[active[0]])? != 0 {
                    if let Some(&odd) = self.differ(*cond, lanes, active)?.1.first() {
                        return Err(Stop::Internal(format!("the condition {cond} of a while loop differs in lane {odd}")));
                    }
                    self.all(body, lanes, active)?;
                }
                Ok(())
            }
            Stmt::Let { local, value } => {
                for &l in active {
                    let v = self.value(*value, &lanes[l])?;
                    put(&mut lanes[l].locals, *local, v);
                }
                Ok(())
            }
            Stmt::Store { buffer, index, value } => {
                let mut writes = vec![];
                for &l in active {
                    let at: Vec<i64> =
                        index.iter().map(|&i| self.value(i, &lanes[l]).map(|v| v as i64)).collect::<Result<_, _>>()?;
                    writes.push((self.place(*buffer, &at)?, self.value(*value, &lanes[l])?));
                }
                let dtype = self.buffer(*buffer)?.dtype;
                for (place, v) in writes {
                    let raw = eval::to_memory(dtype, v).to_le_bytes();
                    self.memory[*buffer as usize][place..place + dtype.bytes()].copy_from_slice(&raw[..dtype.bytes()]);
                }
                Ok(())
            }
            Stmt::Alloc { buffer } => {
                let (dtype, span) = (self.buffer(*buffer)?.dtype, self.shapes[*buffer as usize].span());
                self.memory[*buffer as usize] = poison(dtype, span);
                Ok(())
            }
            Stmt::If { cond, then, otherwise } => {
                let (yes, no) = self.differ(*cond, lanes, active)?;
                self.all(then, lanes, &yes)?;
                self.all(otherwise, lanes, &no)
            }
            Stmt::Check { cond, code } => match self.differ(*cond, lanes, active)?.1.is_empty() {
                true => Ok(()),
                false => Err(Stop::Check(*code)),
            },
        }
    }

    /// The active lanes where `cond` holds, and the others.
    fn differ(&self, cond: Scalar, lanes: &[Lane], active: &[usize]) -> Result<(Vec<usize>, Vec<usize>), Stop> {
        let (mut yes, mut no) = (vec![], vec![]);
        for &l in active {
            if self.value(cond, &lanes[l])? != 0 { yes.push(l) } else { no.push(l) }
        }
        Ok((yes, no))
    }

    fn uniform(&self, e: Expr, lanes: &[Lane], active: &[usize]) -> Result<i64, Stop> {
        let first = self.index(&lanes[active[0]], e)?;
        for &l in active {
            if self.index(&lanes[l], e)? != first {
                return Err(Stop::Internal(format!("the extent {e} differs between lanes")));
            }
        }
        Ok(first)
    }

    fn buffer(&self, n: u32) -> Result<&Buffer, Stop> {
        self.kernel.buffers.get(n as usize).ok_or_else(|| Stop::Internal(format!("buffer {n} does not exist")))
    }

    /// The byte where an element begins.
    fn place(&self, n: u32, index: &[i64]) -> Result<usize, Stop> {
        let b = self.buffer(n)?;
        let shape = &self.shapes[n as usize];
        let inside = index.len() == shape.dims.len() && index.iter().zip(&shape.dims).all(|(&i, &d)| (0..d).contains(&i));
        let at: i64 = index.iter().zip(&shape.strides).map(|(&i, &s)| i * s).sum();
        let byte = usize::try_from(at).ok().map(|at| at * b.dtype.bytes());
        let bytes = self.memory[n as usize].len();
        match byte {
            Some(byte) if inside && byte + b.dtype.bytes() <= bytes => Ok(byte),
            _ => {
                let ty = format!("{}{:?} with strides {:?}", b.dtype, shape.dims, shape.strides);
                Err(Stop::Internal(format!(
                    "index {index:?} is outside buffer '{}' (b{n}), which is {ty}, {bytes} bytes",
                    b.name
                )))
            }
        }
    }

    fn load(&self, n: u32, index: &[i64], dtype: DType) -> Result<u64, Stop> {
        let b = self.buffer(n)?;
        if b.dtype != dtype {
            return Err(Stop::Internal(format!("buffer '{}' (b{n}) is {}, it is read as {dtype}", b.name, b.dtype)));
        }
        let place = self.place(n, index)?;
        let mut raw = [0u8; 8];
        raw[..dtype.bytes()].copy_from_slice(&self.memory[n as usize][place..place + dtype.bytes()]);
        Ok(eval::from_memory(dtype, u64::from_le_bytes(raw)))
    }

    fn value(&self, s: Scalar, lane: &Lane) -> Result<u64, Stop> {
        let stop: RefCell<Option<Stop>> = RefCell::new(None);
        let note = |s: Stop| {
            stop.borrow_mut().get_or_insert(s);
        };
        let leaf = |e: Expr| {
            let value = self.leaf(lane, e);
            if value.is_none() {
                note(Stop::Internal(format!("{e} has no value")));
            }
            Some(value.unwrap_or(0))
        };
        let mut read = |n: u32, at: &[i64], d: DType| {
            self.load(n, at, d).unwrap_or_else(|s| {
                note(s);
                0
            })
        };
        let local = |n: u32| {
            lane.locals.get(n as usize).copied().flatten().unwrap_or_else(|| {
                note(Stop::Internal(format!("local t{n} has no value")));
                0
            })
        };
        let value = eval::scalar(s, &leaf, &mut read, &local);
        match stop.into_inner() {
            Some(s) => Err(s),
            None => Ok(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Access, Buffer, Kernel, LoopKind, Space, Stmt};
    use super::*;
    use infc_ir::scalar::Binary;

    fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn buffer(name: &str, n: i64, access: Access) -> Buffer {
        let dims = vec![Expr::int(n)];
        Buffer { name: name.into(), dtype: DType::F32, strides: Buffer::row_major(&dims), dims, space: Space::Global, access }
    }

    /// y[i] = x[i] * 2 in lanes of 4 where i < n, of two tasks.
    fn doubled(n: i64) -> Kernel {
        let (task, lane) = (Expr::var(0), Expr::var(1));
        let i = Scalar::index(task * 4 + lane);
        let read = Scalar::read(DType::F32, 0, [i]);
        let store = Stmt::Store { buffer: 1, index: vec![i], value: read * Scalar::float(DType::F32, 2.0) };
        let mask = Stmt::If { cond: Scalar::binary(Binary::Lt, i, Scalar::index(n)), then: vec![store], otherwise: vec![] };
        Kernel {
            name: "double".into(),
            buffers: vec![buffer("x", 7, Access::Read), buffer("y", 7, Access::Write)],
            symbols: vec![],
            tasks: Expr::int(2),
            task: 0,
            body: vec![Stmt::For { var: 1, extent: Expr::int(4), kind: LoopKind::Vector, body: vec![mask] }],
        }
    }

    #[test]
    fn masked_lanes() {
        let mut buffers = [f32s(&[1., 2., 3., 4., 5., 6., 7.]), f32s(&[0.; 7])];
        run(&doubled(7), &[], &mut buffers).unwrap();
        assert_eq!(buffers[1], f32s(&[2., 4., 6., 8., 10., 12., 14.]));
    }

    #[test]
    fn an_access_outside_is_named() {
        let mut buffers = [f32s(&[0.; 7]), f32s(&[0.; 7])];
        let Err(Stop::Internal(what)) = run(&doubled(8), &[], &mut buffers) else { panic!("no error") };
        assert!(what.contains("index [7] is outside buffer 'y'"), "{what}");
    }
}
