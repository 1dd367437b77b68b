//! The loop interpreter: runs a [`Kernel`] with every access checked.
//!
//! Lanes of a vector loop run together: each statement is done by all active lanes before the next one begins, and a store becomes
//! visible after all lanes have evaluated it. A vector loop inside another one, or of an extent that is no constant, runs its
//! iterations one after another. Memory of `Tile`, `Reg` and `Shared` buffers is poisoned at each `Alloc` (NaN for floats), so that a
//! value used before it is stored shows. `fast` compiles the kernel and runs that; `walk` is its slow twin in tests.

mod compile;
mod fast;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod walk;

use super::{Buffer, Kernel, Space, Stmt};
use infc_ir::dtype::Class;
use infc_ir::expr::Node;
use infc_ir::{DType, Expr, Scalar, eval};

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
    let kernel = bind(kernel, symbols);
    let mut memory = Memory::new(&kernel.buffers, buffers)?;
    let result = fast::run(&kernel, &mut memory);
    for (place, bytes) in buffers.iter_mut().zip(memory.bytes) {
        *place = bytes;
    }
    result
}

/// The kernel with numbers for its symbols.
fn bind(kernel: &Kernel, symbols: &[i64]) -> Kernel {
    let number = |s: &str| kernel.symbols.iter().position(|k| *k == s).map(|i| Expr::int(symbols[i]));
    let expr = |e: Expr| {
        e.map(&|l| match l.node() {
            Node::Sym(s) => number(s).unwrap_or(l),
            _ => l,
        })
    };
    let mut kernel = kernel.clone();
    if !kernel.symbols.is_empty() {
        kernel.tasks = expr(kernel.tasks);
        for b in &mut kernel.buffers {
            b.dims.iter_mut().chain(&mut b.strides).for_each(|e| *e = expr(*e));
        }
        bind_body(&mut kernel.body, &expr);
    }
    kernel
}

fn bind_body(body: &mut [Stmt], expr: &dyn Fn(Expr) -> Expr) {
    let scalar = |s: &mut Scalar| *s = s.map_index(expr);
    for s in body {
        match s {
            Stmt::For { extent, body, .. } => {
                *extent = expr(*extent);
                bind_body(body, expr);
            }
            Stmt::While { cond, body } => {
                scalar(cond);
                bind_body(body, expr);
            }
            Stmt::Let { value, .. } => scalar(value),
            Stmt::Store { index, value, .. } => index.iter_mut().chain([value]).for_each(scalar),
            Stmt::If { cond, then, otherwise } => {
                scalar(cond);
                bind_body(then, expr);
                bind_body(otherwise, expr);
            }
            Stmt::Check { cond, .. } => scalar(cond),
            Stmt::Prefetch { index, .. } => index.iter_mut().for_each(scalar),
            Stmt::Alloc { .. } => {}
        }
    }
}

/// The buffers of a kernel with their bytes, dims and strides.
struct Memory<'k> {
    buffers: &'k [Buffer],
    bytes: Vec<Vec<u8>>,
    shapes: Vec<Shape>,
}

impl<'k> Memory<'k> {
    fn new(buffers: &'k [Buffer], globals: &mut [Vec<u8>]) -> Result<Memory<'k>, Stop> {
        let (mut bytes, mut shapes) = (vec![], vec![]);
        for b in buffers {
            let fixed = |list: &[Expr]| list.iter().map(|e| e.known()).collect::<Option<Vec<i64>>>();
            let (Some(dims), Some(strides)) = (fixed(&b.dims), fixed(&b.strides)) else {
                return Err(Stop::Internal(format!("dims or strides of buffer '{}' have no value", b.name)));
            };
            if dims.len() != strides.len() {
                return Err(Stop::Internal(format!("buffer '{}' has {} dims, {} strides", b.name, dims.len(), strides.len())));
            }
            shapes.push(Shape { dims, strides });
        }
        for (b, shape) in buffers.iter().zip(&shapes) {
            let given = (b.space == Space::Global).then(|| globals.get_mut(bytes.len()).map(std::mem::take)).flatten();
            bytes.push(given.unwrap_or_else(|| poison(b.dtype, shape.span())));
        }
        Ok(Memory { buffers, bytes, shapes })
    }

    fn buffer(&self, n: u32) -> Result<&'k Buffer, Stop> {
        self.buffers.get(n as usize).ok_or_else(|| Stop::Internal(format!("buffer {n} does not exist")))
    }

    fn alloc(&mut self, n: u32) -> Result<(), Stop> {
        let b = self.buffer(n)?;
        if b.space == Space::Global {
            return Err(Stop::Internal(format!("buffer '{}' (b{n}) is a parameter and cannot be allocated", b.name)));
        }
        self.bytes[n as usize] = poison(b.dtype, self.shapes[n as usize].span());
        Ok(())
    }

    fn outside(&self, n: u32, index: &[i64]) -> Stop {
        let (b, shape, bytes) = (&self.buffers[n as usize], &self.shapes[n as usize], self.bytes[n as usize].len());
        let ty = format!("{}{:?} with strides {:?}", b.dtype, shape.dims, shape.strides);
        Stop::Internal(format!("index {index:?} is outside buffer '{}' (b{n}), which is {ty}, {bytes} bytes", b.name))
    }
}

fn check_dtype(n: u32, b: &Buffer, dtype: DType) -> Result<(), Stop> {
    if b.dtype == dtype {
        return Ok(());
    }
    Err(Stop::Internal(format!("buffer '{}' (b{n}) is {}, it is accessed as {dtype}", b.name, b.dtype)))
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
