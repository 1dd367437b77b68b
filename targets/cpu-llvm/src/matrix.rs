//! Matrix loops as instructions of AMX: tiles of sums stay in TMM registers, tiles of factors are loaded where a step needs others than are loaded.
//!
//! A matrix loop runs over the rows of a tile, and a loop of 16 columns in it over one store: zero into a sum (TILEZERO), one from memory (TILELOADD), the step of a row of
//! [`infc_kernel::rows`] for tiles (TDPBF16PS, TDPFP16PS and those of bytes), or a sum into memory (TILESTORED). Where sums come from memory, a part of the second factor stays in L1 while rows pass it:
//! these are loaded by TILELOADDT1, which leaves L1 alone. Sums lie in one `Reg` buffer of four
//! dims: tiles down, tiles across, rows, columns; it has no memory. Registers are given out here, and LLVM's intrinsics take their numbers, so its
//! own allocation of tiles takes no part. The entry of the kernel loads the one configuration that its loops need, and releases the tiles at the end.

use crate::emit::Emit;
use crate::ir::{Elem, Ty, Val};
use crate::ops::memory_elem;
use infc_ir::scalar::Kind;
use infc_ir::{DType, Expr, Fault, Scalar, fault};
use infc_kernel::loops::{Buffer, Kernel, LoopKind, Space, Stmt};
use infc_kernel::rows::tile_step_of;
use infc_kernel::zero_point::byte_read;
use std::collections::BTreeSet;

/// Columns of a tile of sums, 4 bytes each.
const COLUMNS: i64 = 16;
/// Registers.
const REGISTERS: usize = 8;

/// Tiles of a kernel.
#[derive(Default)]
pub(crate) struct Tiles {
    /// Buffers of sums.
    sums: BTreeSet<usize>,
    /// Sums come from memory.
    waiting: bool,
    config: Option<Config>,
    /// Factors in registers.
    loaded: Vec<Loaded>,
    /// The next register of each side to be given out.
    next: [usize; 2],
}

/// Shapes of tiles: the same for all steps of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Config {
    /// Tiles of sums down and across.
    grid: [usize; 2],
    /// Rows of sums and of the first factor.
    rows: usize,
    /// Bytes along k.
    depth: usize,
}

/// A tile of a factor that is loaded: which side, buffer, place of its first element, register.
struct Loaded {
    right: bool,
    source: usize,
    at: Expr,
    register: usize,
}

impl Tiles {
    /// Those that the kernel's matrix loops use.
    pub fn of(kernel: &Kernel) -> Tiles {
        fn walk(body: &[Stmt], buffers: &[Buffer], inside: bool, found: &mut Tiles) {
            for s in body {
                match s {
                    Stmt::For { kind, body, .. } => walk(body, buffers, inside || *kind == LoopKind::Matrix, found),
                    Stmt::While { body, .. } => walk(body, buffers, inside, found),
                    Stmt::If { then, otherwise, .. } => {
                        walk(then, buffers, inside, found);
                        walk(otherwise, buffers, inside, found);
                    }
                    Stmt::Store { buffer, value, .. } if inside && buffers[*buffer as usize].space == Space::Reg => {
                        found.sums.insert(*buffer as usize);
                        found.waiting |= matches!(value.kind(), Kind::Read { .. });
                    }
                    Stmt::Store { .. } | Stmt::Let { .. } | Stmt::Alloc { .. } | Stmt::Prefetch { .. } | Stmt::Check { .. } => {}
                }
            }
        }
        let mut tiles = Tiles::default();
        walk(&kernel.body, &kernel.buffers, false, &mut tiles);
        tiles
    }
    /// Is the buffer one of sums, which live in registers?
    pub fn holds(&self, buffer: usize) -> bool {
        self.sums.contains(&buffer)
    }
    /// What is loaded may be something else from here on.
    pub fn forget(&mut self) {
        self.loaded.clear();
    }
    /// The 64 bytes that LDTILECFG reads, if the kernel has tiles: palette 1, then bytes of a row and rows of each tile.
    pub fn config(&self) -> Option<[u8; 64]> {
        let c = self.config?;
        let mut bytes = [0; 64];
        bytes[0] = 1;
        let [down, across] = c.grid;
        let shapes = std::iter::repeat_n((64, c.rows), down * across)
            .chain(std::iter::repeat_n((c.depth, c.rows), down))
            .chain(std::iter::repeat_n((64, c.depth / 4), across));
        for (t, (width, rows)) in shapes.enumerate() {
            (bytes[16 + 2 * t], bytes[48 + t]) = (width as u8, rows as u8);
        }
        Some(bytes)
    }
}

/// A number of a tile as an operand.
fn number(register: usize) -> Val {
    Val::int(Elem::I8, register as i64)
}

impl Emit<'_> {
    /// The matrix loop over `var`, of `rows` rows.
    pub fn matrix(&mut self, var: u32, rows: i64, body: &[Stmt]) -> Result<(), Fault> {
        let bad = || fault!("a matrix loop that is none of a tile: rows of 16 columns with one store");
        let [Stmt::For { var: column, extent, body, .. }] = body else { return Err(bad()) };
        let [Stmt::Store { buffer, index, value }] = body.as_slice() else { return Err(bad()) };
        if !extent.is(COLUMNS) || !(1..=16).contains(&rows) {
            return Err(bad());
        }
        let (buffer, lines) = (*buffer as usize, [var, *column]);
        if !self.tiles.holds(buffer) {
            return self.tile_stored(buffer, index, *value, lines);
        }
        let sums = self.tile_of(buffer, index, lines)?;
        if value.as_float() == Some(0.0) || value.as_int() == Some(0) {
            self.f.intrinsic_void("llvm.x86.tilezero", &[], &[number(sums)]);
            return Ok(());
        }
        if let Kind::Read { source, index, guard: None } = value.kind() {
            let (address, stride) = self.tile_lines(*source as usize, index, lines)?;
            self.f.intrinsic_void("llvm.x86.tileloadd64", &[], &[number(sums), address, stride]);
            return Ok(());
        }
        let step = tile_step_of(*value).ok_or_else(|| fault!("the sum of a tile is no step of a row for tiles: {value}"))?;
        match step.sum.kind() {
            Kind::Read { source, index: of, guard: None } if *source as usize == buffer && of == index => {}
            _ => return Err(fault!("a tile adds to another sum than its own: {}", step.sum)),
        }
        let read = |s: &Scalar| match s.kind() {
            Kind::Cast(x) if matches!(x.dtype(), DType::BF16 | DType::F16) => Some(*x),
            Kind::Cast(x) => byte_read(*x).filter(|(_, flipped)| !flipped).map(|(read, _)| read),
            _ => None,
        };
        let reads = |all: &[Scalar]| all.iter().map(read).collect::<Option<Vec<_>>>();
        let (Some(a), Some(b)) = (reads(&step.a), reads(&step.b)) else {
            return Err(fault!("factors of a tile are not read as they lie: {value}"));
        };
        let bytes = a[0].dtype().bytes();
        let dims = &self.kernel.buffers[buffer].dims;
        let grid = [0, 1].map(|k| dims[k].known().unwrap_or(0) as usize);
        let config = Config { grid, rows: rows as usize, depth: a.len() * bytes };
        let [down, across] = grid;
        if config.depth > 64 || config.depth % 4 != 0 || down * across + down + across > REGISTERS {
            return Err(fault!("{down}x{across} tiles of {} bytes along k do not fit the registers", config.depth));
        }
        if self.tiles.config.is_some_and(|c| c != config) {
            return Err(fault!("tiles of two shapes in one kernel"));
        }
        self.tiles.config = Some(config);
        // Rows of the first factor are neighbours along k; the second one has groups of 4 bytes for each column.
        let group = 4 / bytes;
        let left = self.tile_loaded(&a, a.len(), lines, false)?;
        let right = self.tile_loaded(&b, group, lines, true)?;
        let name = match step.row.name {
            "amx_bf16" => "tdpbf16ps",
            "amx_f16" => "tdpfp16ps",
            "amx_u8s8" => "tdpbusd",
            "amx_s8s8" => "tdpbssd",
            "amx_u8u8" => "tdpbuud",
            "amx_s8u8" => "tdpbsud",
            other => return Err(fault!("no instruction for the row '{other}'")),
        };
        self.f.intrinsic_void(&format!("llvm.x86.{name}"), &[], &[number(sums), number(left), number(right)]);
        Ok(())
    }

    /// The register of the tile of sums that `index` says.
    fn tile_of(&mut self, buffer: usize, index: &[Scalar], [row, column]: [u32; 2]) -> Result<usize, Fault> {
        let bad = || fault!("sums of a tile are not at [down, across, row, column]: {index:?}");
        let all: Vec<Expr> =
            index.iter().map(|i| i.as_index().map(|e| self.resolve(e))).collect::<Option<_>>().ok_or_else(bad)?;
        let [t, u, i, j] = all[..] else { return Err(bad()) };
        let dims = &self.kernel.buffers[buffer].dims;
        // With one row its variable is known to be 0.
        let rows = i == Expr::var(row as usize) || dims[2].is(1) && i.is(0);
        let (Some(t), Some(u), true) = (t.known(), u.known(), rows && j == Expr::var(column as usize)) else { return Err(bad()) };
        let across = dims[1].known().unwrap_or(1);
        Ok((t * across + u) as usize)
    }

    /// A place in elements from the start of the buffer.
    fn flat(&self, read: Scalar) -> Result<(usize, Expr), Fault> {
        let bad = || fault!("a tile is read or written at a place that only data tells: {read}");
        let Kind::Read { source, index, guard: None } = read.kind() else { return Err(bad()) };
        self.flat_at(*source as usize, index).map(|at| (*source as usize, at)).ok_or_else(bad)
    }

    fn flat_at(&self, buffer: usize, index: &[Scalar]) -> Option<Expr> {
        let strides = &self.kernel.buffers[buffer].strides;
        let mut at = Expr::int(0);
        for (i, &stride) in index.iter().zip(strides) {
            at = at + i.as_index()? * stride;
        }
        Some(self.resolve(at))
    }

    /// The register with the tile of a factor, of which these are the members along k; rows have `width` of them.
    fn tile_loaded(&mut self, members: &[Scalar], width: usize, [row, column]: [u32; 2], right: bool) -> Result<usize, Fault> {
        let (source, first) = self.flat(members[0])?;
        let bad = || fault!("the factors of a tile are not evenly spaced: {first}");
        let mut offsets = vec![];
        for &m in members {
            let (same, at) = self.flat(m)?;
            let distance = self.resolve(at - first).known().filter(|_| same == source).ok_or_else(bad)?;
            offsets.push(distance);
        }
        // Along the loop over rows or columns, and from one row of the second factor to the next.
        let (own, other) = if right { (column, row) } else { (row, column) };
        let (step, at) = first.affine_in(own).filter(|(_, rest)| !rest.uses_var(other)).ok_or_else(bad)?;
        let stride = match right {
            false => step,
            true => offsets.get(width).copied().unwrap_or(0),
        };
        let even = offsets.iter().enumerate().all(|(k, &o)| o == (k / width) as i64 * stride + (k % width) as i64);
        if !even || right && step != width as i64 {
            return Err(bad());
        }
        if let Some(l) = self.tiles.loaded.iter().find(|l| (l.right, l.source, l.at) == (right, source, at)) {
            return Ok(l.register);
        }
        let [down, across] = self.tiles.config.expect("set before").grid;
        let (begin, count) = if right { (down * across + down, across) } else { (down * across, down) };
        let next = &mut self.tiles.next[usize::from(right)];
        let register = begin + *next % count;
        *next += 1;
        self.tiles.loaded.retain(|l| l.register != register);
        self.tiles.loaded.push(Loaded { right, source, at, register });
        let (address, stride) = self.tile_address(source, at, stride)?;
        let name = if self.tiles.waiting && !right { "tileloaddt164" } else { "tileloadd64" };
        self.f.intrinsic_void(&format!("llvm.x86.{name}"), &[], &[number(register), address, stride]);
        Ok(register)
    }

    /// Address of an element, and bytes from one row to the next.
    fn tile_address(&mut self, buffer: usize, at: Expr, stride: i64) -> Result<(Val, Val), Fault> {
        let b = &self.kernel.buffers[buffer];
        let base = self.places[buffer].ok_or_else(|| fault!("buffer '{}' is used before its Alloc", b.name))?;
        let elem = memory_elem(b.dtype)?;
        let address = self.pointer(base, elem, at, None)?;
        Ok((address, Val { ty: Ty::new(Elem::I64, 1), ..Val::i64(stride * i64::from(elem.bits() / 8)) }))
    }

    /// Address of a tile of sums in memory, and bytes from one row to the next.
    fn tile_lines(&mut self, buffer: usize, index: &[Scalar], lines: [u32; 2]) -> Result<(Val, Val), Fault> {
        let bad = || fault!("sums of a tile are not in lines of memory: {index:?}");
        let at = self.flat_at(buffer, index).ok_or_else(bad)?;
        let (1, rest) = at.affine_in(lines[1]).ok_or_else(bad)? else { return Err(bad()) };
        let (stride, rest) = rest.affine_in(lines[0]).ok_or_else(bad)?;
        self.tile_address(buffer, rest, stride)
    }

    /// Sums into memory.
    fn tile_stored(&mut self, buffer: usize, index: &[Scalar], value: Scalar, lines: [u32; 2]) -> Result<(), Fault> {
        let bad = || fault!("a matrix loop stores something else than sums: {value}");
        let Kind::Read { source, index: of, guard: None } = value.kind() else { return Err(bad()) };
        if !self.tiles.holds(*source as usize) {
            return Err(bad());
        }
        let sums = self.tile_of(*source as usize, of, lines)?;
        let (address, stride) = self.tile_lines(buffer, index, lines)?;
        self.f.intrinsic_void("llvm.x86.tilestored64", &[], &[number(sums), address, stride]);
        Ok(())
    }
}
