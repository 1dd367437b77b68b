//! The loop IR: *how* a kernel computes, and what every backend prints.
//!
//! A [`Kernel`] is a function over buffers. Buffers stay multi-dimensional; [`Buffer::strides`] says where an element lies.
//! Scalar expressions are those of [`infc_ir::scalar`]: `Read { source }` names a buffer of the kernel, `Local` a `Let`,
//! `Index` may use loop variables and symbols.
//!
//! A `Vector` loop is data-parallel: its body runs for all lanes together. Inside it, loops have the same extent for all lanes, an
//! `If` whose condition differs between lanes is a mask, and no lane sees another one's stores before the loop ends. A backend
//! may run the lanes one after another.
//!
//! Semantics, in order of execution: a store rounds to nothing (values already have the buffer's dtype); reads see earlier stores;
//! `Check` ends the kernel with its code if the condition is false. All scalar operations are total (`docs/ir.md`).

#[cfg(test)]
mod arbitrary;
pub mod interp;
pub mod text;
pub mod verify;

use infc_ir::{DType, Expr, Scalar};
use std::collections::BTreeMap;

/// One kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// A readable name, from the operators in it. Not part of its identity.
    pub name: String,
    /// Its buffers. Those in [`Space::Global`] come first and are the parameters, in this order.
    pub buffers: Vec<Buffer>,
    /// Symbols that occur in it, in the order of the extents parameter.
    pub symbols: Vec<&'static str>,
    /// Number of independent tasks; the body runs once for each value of variable `task` below this.
    pub tasks: Expr,
    /// The variable that is the task number.
    pub task: u32,
    /// The statements of one task.
    pub body: Vec<Stmt>,
    /// Names of its loop variables, where there are any.
    pub axes: Axes,
    /// Which of its loops over threads copy boxes of tensors.
    pub boxes: Boxes,
}

/// Readable names of loop variables, for backends that print text for people. No part of a kernel's identity, nor of its text
/// form: all of them are equal.
#[derive(Clone, Default)]
pub struct Axes(pub BTreeMap<u32, &'static str>);

impl PartialEq for Axes {
    fn eq(&self, _: &Axes) -> bool {
        true
    }
}

impl std::fmt::Debug for Axes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("_")
    }
}

/// Loops over threads that only copy a box of a parameter into shared memory, by their variable: the same said as data, for machines
/// with an instruction for it. No part of a kernel's identity, nor of its text form: all of them are equal, and the loops are what counts.
#[derive(Clone, Default)]
pub struct Boxes(pub BTreeMap<u32, BoxCopy>);

impl PartialEq for Boxes {
    fn eq(&self, _: &Boxes) -> bool {
        true
    }
}

impl std::fmt::Debug for Boxes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("_")
    }
}

/// A copy of a box of a tensor that lies in a parameter. Shared memory has the elements of the box one behind the other, those along the first axis next to
/// each other; elements outside of the tensor are 0 there.
#[derive(Clone, Debug)]
pub struct BoxCopy {
    /// The parameter.
    pub from: u32,
    /// The buffer in shared memory, which is filled.
    pub to: u32,
    /// Elements of the parameter before the tensor.
    pub offset: i64,
    /// The tensor's axes, the first one of neighbours.
    pub axes: Vec<BoxAxis>,
    /// So many such boxes, each behind the one before along the first axis, and in shared memory.
    pub count: i64,
}

/// An axis of such a tensor.
#[derive(Clone, Copy, Debug)]
pub struct BoxAxis {
    /// Its extent.
    pub size: i64,
    /// Distance of neighbours in elements.
    pub stride: i64,
    /// Extent of the box.
    pub part: i64,
    /// Where the box begins.
    pub at: Expr,
}

/// A buffer of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Buffer {
    /// A readable name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Logical dims.
    pub dims: Vec<Expr>,
    /// Distance in elements between neighbours along each axis.
    pub strides: Vec<Expr>,
    /// Where it lies.
    pub space: Space,
    /// Who writes it.
    pub access: Access,
}

/// Where a buffer lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// A parameter: memory of the model (arena, constants, caller's buffers).
    Global,
    /// Scratch memory of one task, with constant dims; contents undefined at the `Alloc`.
    Tile,
    /// Meant for registers: constant dims, small, indexed by constants once unrolled and vectorised.
    Reg,
    /// Memory shared by the threads of a block (GPU).
    Shared,
}

/// Who writes a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Only read.
    Read,
    /// Only written.
    Write,
    /// Read and written (in place).
    ReadWrite,
}

/// How the iterations of a loop run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LoopKind {
    /// One after another.
    Serial,
    /// In any order, by any thread.
    Parallel,
    /// As lanes of a vector; the extent is constant.
    Vector,
    /// Written out; the extent is constant.
    Unroll,
    /// As threads of a block, in any order: all have ended before what comes after begins. The extent is constant, and the same for
    /// all such loops of a kernel. Beside matrix loops of warpgroups these are other threads than those of the warps.
    Thread,
    /// As warps of a block, in any order, each of them [`WARP`] threads.
    Warp,
    /// Over the rows of a tile of a matrix instruction, by the threads of a warp together. With more than 8 columns, four warps side by side with
    /// the rows of each other issue the instruction together (`wgmma`). Its body is a loop over columns, and that
    /// is what each element does: a loop over products that are added to the element of a `Reg` buffer (the instruction), or other statements
    /// that touch no other element. On a CPU with tiles (AMX) it has up to 16 rows and 16 columns, and one store: zero or a step of a row for
    /// tiles into a `Reg` buffer of `[down, across, row, column]`, or what such a buffer holds into memory.
    Matrix,
}

/// Threads of a warp.
pub const WARP: i64 = 32;

/// A statement.
#[derive(Clone, Debug, PartialEq)]
pub enum Stmt {
    /// `for var in 0..extent`.
    For {
        /// The loop variable, unique in the kernel.
        var: u32,
        /// Number of iterations; not positive means none.
        extent: Expr,
        /// How they run.
        kind: LoopKind,
        /// What runs.
        body: Vec<Stmt>,
    },
    /// While `cond` holds (uniform over lanes).
    While {
        /// Evaluated before each iteration.
        cond: Scalar,
        /// What runs.
        body: Vec<Stmt>,
    },
    /// Names a value; the number is unique in the kernel.
    Let {
        /// Its number, seen as `Local`.
        local: u32,
        /// Its value.
        value: Scalar,
    },
    /// Writes an element.
    Store {
        /// The buffer.
        buffer: u32,
        /// One `i64` scalar per dim.
        index: Vec<Scalar>,
        /// Of the buffer's dtype.
        value: Scalar,
    },
    /// Begins the life of a `Tile`, `Reg` or `Shared` buffer; it ends with the enclosing list of statements.
    Alloc {
        /// The buffer.
        buffer: u32,
    },
    /// A hint that the element will be read soon. It changes no value and never fails: its address may lie anywhere in the buffer,
    /// whatever the dims say, or a little behind its end.
    Prefetch {
        /// The buffer, a parameter.
        buffer: u32,
        /// One `i64` scalar per dim; where it differs between lanes, the hint may be ignored.
        index: Vec<Scalar>,
    },
    /// A branch, or a mask inside a vector loop.
    If {
        /// A bool.
        cond: Scalar,
        /// Where it holds.
        then: Vec<Stmt>,
        /// Where not.
        otherwise: Vec<Stmt>,
    },
    /// Ends the kernel with `code` if `cond` does not hold.
    Check {
        /// A bool.
        cond: Scalar,
        /// What [`infc_artifact::program::Program`] has a message for.
        code: u32,
    },
}

impl Buffer {
    /// Strides of a dense layout with the axes in `order`, outermost first.
    pub fn strides_in_order(dims: &[Expr], order: &[usize]) -> Vec<Expr> {
        let mut strides = vec![Expr::int(0); dims.len()];
        let mut step = Expr::int(1);
        for &axis in order.iter().rev() {
            strides[axis] = step;
            step = step * dims[axis];
        }
        strides
    }
    /// Row-major strides.
    pub fn row_major(dims: &[Expr]) -> Vec<Expr> {
        Buffer::strides_in_order(dims, &(0..dims.len()).collect::<Vec<_>>())
    }
    /// Elements from its start to the one after its last, for dense and padded layouts.
    pub fn span(&self) -> Expr {
        if self.dims.iter().any(|d| d.is(0)) {
            return Expr::int(0);
        }
        let last = self.dims.iter().zip(&self.strides).fold(Expr::int(0), |acc, (&d, &s)| acc + (d - 1) * s);
        last + 1
    }
}
