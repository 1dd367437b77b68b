//! Decoded instructions. Every operand is the number of a register: constants and special registers have registers of their own,
//! which are set when a warp starts.

use std::collections::HashMap;

/// The type in an instruction's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub(crate) enum Ty {
    Pred,
    B8,
    B16,
    B32,
    B64,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    BF16,
    TF32,
    F32,
    F64,
    F16x2,
}

impl Ty {
    pub fn parse(text: &str) -> Option<Ty> {
        Some(match text {
            "pred" => Ty::Pred,
            "b8" => Ty::B8,
            "b16" => Ty::B16,
            "b32" => Ty::B32,
            "b64" => Ty::B64,
            "u8" => Ty::U8,
            "u16" => Ty::U16,
            "u32" => Ty::U32,
            "u64" => Ty::U64,
            "s8" => Ty::S8,
            "s16" => Ty::S16,
            "s32" => Ty::S32,
            "s64" => Ty::S64,
            "f16" => Ty::F16,
            "bf16" => Ty::BF16,
            "tf32" => Ty::TF32,
            "f32" => Ty::F32,
            "f64" => Ty::F64,
            "f16x2" => Ty::F16x2,
            _ => return None,
        })
    }
    pub fn bytes(self) -> usize {
        match self {
            Ty::Pred | Ty::B8 | Ty::U8 | Ty::S8 => 1,
            Ty::B16 | Ty::U16 | Ty::S16 | Ty::F16 | Ty::BF16 => 2,
            Ty::B32 | Ty::U32 | Ty::S32 | Ty::F32 | Ty::TF32 | Ty::F16x2 => 4,
            Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64 => 8,
        }
    }
    pub fn is_signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }
    pub fn is_float(self) -> bool {
        matches!(self, Ty::F16 | Ty::BF16 | Ty::TF32 | Ty::F32 | Ty::F64)
    }
}

/// Memory that an instruction names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    Param,
    Global,
    Shared,
    Local,
}

/// How a conversion rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    None,
    Nearest,
    ToInt(IntRound),
}

/// Rounding to an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IntRound {
    Nearest,
    Zero,
    Down,
    Up,
}

/// A shuffle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Butterfly,
    Down,
    Up,
    Index,
}

/// A matrix instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Matrix {
    /// m16n8k16, f32 += f16 f16.
    F16,
    /// m16n8k16, f32 += bf16 bf16.
    BF16,
    /// m16n8k8, f32 += tf32 tf32.
    TF32,
    /// m16n8k32, s32 += 8-bit integers; signs of a and b.
    I8(bool, bool),
}

/// A matrix instruction of a warpgroup: 64 rows, `columns`, 32 bytes of products; both factors in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wgmma {
    /// What the factors are.
    pub kind: Matrix,
    pub columns: u16,
    /// The factors are multiplied by -1.
    pub negated: [bool; 2],
    /// The factors lie with rows (columns) side by side, not products.
    pub transposed: [bool; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bin {
    Add,
    Sub,
    Mul,
    MulHi,
    MulWide,
    Div,
    Rem,
    Min,
    Max,
    MinNan,
    MaxNan,
    And,
    Or,
    Xor,
    Shl,
    Shr,
    CopySign,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Un {
    Neg,
    Abs,
    Not,
    Sqrt,
    Clz,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// Unordered or not equal.
    Neu,
    /// Either is NaN.
    Nan,
    /// Neither is.
    Num,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Mov(Ty),
    Bin(Bin, Ty),
    Un(Un, Ty),
    Fma(Ty),
    Mad(Ty),
    Dp4a(bool, bool),
    Bfe(Ty),
    Setp(Cmp, Ty),
    Selp,
    Cvt {
        to: Ty,
        from: Ty,
        round: Round,
    },
    /// Two f32 to a pair of halves.
    CvtPair(Ty),
    Load {
        space: Space,
        ty: Ty,
        count: u8,
    },
    Store {
        space: Space,
        ty: Ty,
        count: u8,
    },
    /// Joins registers of half the width.
    Join,
    /// Splits a register into two of half the width.
    Split,
    Branch,
    Exit,
    Barrier,
    WarpBarrier,
    Shuffle(Shuffle),
    Matrix(Matrix),
    LoadMatrix {
        count: u8,
        transposed: bool,
    },
    CopyAsync {
        bytes: u8,
    },
    CopyCommit,
    CopyWait(u32),
    Cas,
    AtomicAdd,
    Wgmma(Wgmma),
    WgmmaFence,
    WgmmaCommit,
    WgmmaWait(u32),
    /// An mbarrier of so many arrivals.
    BarrierInit,
    /// One arrival; with `bytes`, so many more are expected.
    /// `far`: perhaps at that of another block of the cluster.
    BarrierArrive {
        bytes: bool,
        far: bool,
    },
    /// Is the phase of this parity over?
    BarrierTry,
    /// A copy of many bytes that an mbarrier counts.
    BulkCopy,
    /// A copy of a box by a tensor map, that an mbarrier counts.
    BoxCopy,
    /// What this thread knows was written to shared memory is seen by bulk copies and `wgmma`.
    ProxyFence,
    /// The mbarriers that this thread made may be used by other blocks of the cluster.
    BarrierFence,
    /// Where an address of this block's shared memory is in another block of the cluster.
    MapShared,
    /// This thread has come to the barrier of the cluster; it waits for all others there.
    ClusterArrive,
    ClusterWait,
    Nothing,
}

/// One instruction: operands are registers, the meaning of `d`, `a`, `b`, `c` and `more` is that of the operator.
#[derive(Clone, Debug)]
pub(crate) struct Inst {
    pub op: Op,
    /// 0: always; else 1 + 2 * register + (1 if the predicate is negated).
    pub guard: u32,
    pub d: u32,
    pub a: u32,
    pub b: u32,
    pub c: u32,
    pub more: Box<[u32]>,
    /// Offset of an address, or the instruction that a branch leads to.
    pub imm: i64,
    pub line: u32,
}

/// Special registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Special {
    Tid(u8),
    NTid(u8),
    Cta(u8),
    NCta(u8),
    Lane,
    Warp,
    /// The block's number in its cluster.
    Rank,
}

/// What a register is when a warp starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Start {
    Plain,
    Const(u64),
    /// Where shared memory of the launch begins; a constant once the kernel is read.
    Dynamic,
    Special(Special),
}

/// A parameter of a kernel.
#[derive(Clone, Debug)]
pub(crate) struct Param {
    pub offset: usize,
    pub bytes: usize,
}

/// One `.entry`.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    pub(crate) code: Vec<Inst>,
    pub(crate) registers: Vec<Start>,
    pub(crate) params: Vec<Param>,
    pub(crate) shared: usize,
    pub(crate) local: usize,
    /// Shared memory whose size the launch tells.
    pub(crate) dynamic_shared: bool,
    /// Has it instructions whose order more than barriers of the block decide: mbarriers, bulk copies, `wgmma`?
    pub(crate) asynchronous: bool,
    /// Blocks of a cluster, along x.
    pub(crate) cluster: u32,
}

impl Kernel {
    /// Where shared memory of the launch begins: at a multiple of 16 and of no more.
    pub(crate) fn dynamic_base(&self) -> usize {
        self.shared.next_multiple_of(32) + 16
    }
    /// Bytes of each parameter.
    pub fn parameter_bytes(&self) -> impl Iterator<Item = usize> {
        self.params.iter().map(|p| p.bytes)
    }
    /// Bytes of all parameters together, as they are laid out.
    pub fn parameters_len(&self) -> usize {
        self.params.last().map_or(0, |p| p.offset + p.bytes)
    }
    /// Offset of each parameter.
    pub fn parameter_offsets(&self) -> impl Iterator<Item = usize> {
        self.params.iter().map(|p| p.offset)
    }
}

/// A module of kernels.
#[derive(Clone, Debug)]
pub struct Module {
    /// What stands behind `.target`.
    pub target: String,
    pub(crate) kernels: HashMap<String, Kernel>,
}

impl Module {
    /// The kernel of that name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.get(name)
    }
    /// Names of its kernels, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.kernels.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }
}
