//! What a target is, as data: vectors, registers, caches, features. Machine files (TOML) are read into this.

use infc_ir::DType;
use serde::{Deserialize, Serialize};

/// Bytes of a line of the cache.
pub const LINE: i64 = 64;

/// A machine that code is made for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetDesc {
    /// Its name on the command line: `x86-64-v3`.
    pub name: String,
    /// The backend that makes code for it: `llvm`.
    pub backend: String,
    /// A sentence for `infc targets`.
    pub doc: String,
    /// The instruction set architecture: `x86_64`.
    pub arch: String,
    /// Features that the machine must have, by the names of the backend (LLVM's: `avx2`, `fma`); checked when an artifact is loaded.
    pub features: Vec<String>,
    /// Bytes of a vector register.
    pub vector_bytes: u32,
    /// Number of vector registers.
    pub vector_registers: u32,
    /// One instruction works on 2, 4 or 8 vector registers that follow each other (LMUL of RISC-V).
    #[serde(default)]
    pub joined_registers: bool,
    /// Registers that products leave to elements of the broadcast factor on their way from memory, where instructions take none from memory themselves; 0
    /// where they do.
    #[serde(default)]
    pub broadcast_registers: u32,
    /// All elements of the broadcast factor of a step are in registers at once, since what compiles the code further moves their reads before the arithmetic (engines of WebAssembly).
    #[serde(default)]
    pub eager_broadcast: bool,
    /// Fused multiply-add in hardware.
    pub fma: bool,
    /// An instruction that adds four products of unsigned with signed bytes to each i32 of a vector, without saturation.
    #[serde(default)]
    pub byte_dot: bool,
    /// An instruction that does so with signed bytes on both sides.
    #[serde(default)]
    pub byte_dot_signed: bool,
    /// Instructions that multiply signed 16-bit numbers and add neighbouring pairs of products to i32: they can stand in for `byte_dot`.
    #[serde(default)]
    pub byte_pairs: bool,
    /// An instruction that adds two products of bf16 to each f32 of a vector.
    #[serde(default)]
    pub bf16_dot: bool,
    /// It adds up less in a cycle than multiply-adds of f32 do, and is worth while only where weights come from memory. (Granite Rapids: 121 GFLOP/s beside 238; Zen 4: 236 beside 118.)
    #[serde(default)]
    pub slow_bf16_dot: bool,
    /// Steps of k by which a panel of weights that L1 does not hold is fetched into it from L2; 0 where the machine keeps up by itself. (Granite Rapids: f32 networks take 3 to 8 % less with 16.)
    #[serde(default)]
    pub panel_ahead: u32,
    /// Fused multiply-add and the other arithmetic on vectors of f16.
    #[serde(default)]
    pub f16_fma: bool,
    /// Tiles of 16 rows of 64 bytes, and instructions that add the products of two of them in bf16 to a third one.
    #[serde(default)]
    pub tile_bf16: bool,
    /// The same for f16.
    #[serde(default)]
    pub tile_f16: bool,
    /// The same for bytes, signed and unsigned ones.
    #[serde(default)]
    pub tile_bytes: bool,
    /// An instruction that widens a vector of f16 to f32.
    #[serde(default)]
    pub widens_f16: bool,
    /// Registers of 32-bit elements from which one instruction takes an element for each lane, by an index in that lane: 2 (VPERMT2PS), 1
    /// (VPERMPS), or 0 where there is none.
    #[serde(default)]
    pub lookup: u32,
    /// The backend has functions for exp, sin and the like: kernels name them instead of spelling them out as arithmetic.
    #[serde(default)]
    pub math_calls: bool,
    /// Threads of a block, on a machine that runs tasks as threads in blocks (a GPU); 0 on others.
    #[serde(default)]
    pub block_threads: u32,
    /// Matrix instructions of four warps together, with factors in shared memory (`wgmma`).
    #[serde(default)]
    pub warpgroups: bool,
    /// Products of so many tiles of 128 x 128 and more are for them; of fewer, most multiprocessors would have none. Tiles of 64 x 64 by warps are four
    /// times as many, and take less time each. (H100, bf16: 24 tiles with 768 products and a GELU took 20 us.)
    #[serde(default)]
    pub warpgroup_tiles: u32,
    /// Bytes of shared memory that a block may have. What is beyond 48 KiB, which every GPU gives without being asked, is asked for at the launch.
    #[serde(default = "shared_bytes")]
    pub shared_bytes: u64,
    /// How products of f32 may be taken: in `tf32`, `bf16` or `f16` for the matrix instructions of GPUs, `bf16` where there is `bf16_dot`,
    /// `f16` where there is `f16_fma` or `tile_f16`.
    #[serde(default)]
    pub math: Math,
    /// Weights stay as narrow as their values are, also where widening them costs time.
    #[serde(default)]
    pub small: bool,
    /// Bytes in a cycle of weights that come from L2 beside arithmetic.
    #[serde(default = "near")]
    pub l2_bytes_per_cycle: u32,
    /// Bytes of L1 data cache.
    pub l1_bytes: u64,
    /// Bytes of one way of the L1 data cache: addresses so far apart share a set. 0 where that does not matter.
    #[serde(default)]
    pub l1_way_bytes: u64,
    /// Bytes of L2 cache of one core.
    pub l2_bytes: u64,
    /// Bytes of L3 cache that one core may count on.
    pub l3_bytes: u64,
    /// Bytes a cycle that one core gets from there; 0 if arithmetic takes no time beside that.
    #[serde(default = "l3_rate")]
    pub l3_rate: u32,
    /// What makes the code, if no backend of infc does.
    #[serde(default)]
    pub plugin: Option<PluginDesc>,
}

/// A program that makes the code for a machine, in place of a backend of infc.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PluginDesc {
    /// Its words. A first one that begins with `.` is a path beside the machine file.
    pub command: Vec<String>,
    /// How long it may take for an artifact.
    #[serde(default = "ten_minutes")]
    pub seconds: u64,
}

fn ten_minutes() -> u64 {
    600
}

/// Where a machine file does not say it. (Zen 4.)
fn l3_rate() -> u32 {
    16
}

/// How products of f32 are taken: their precision, or fewer of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Math {
    /// As they are.
    #[default]
    F32,
    /// Factors rounded to 10 bits of mantissa.
    Tf32,
    /// Factors rounded to bf16.
    Bf16,
    /// Factors rounded to f16.
    F16,
    /// f32, with convolutions of 3 x 3 by minimal filtering: fewer products, in other sums.
    Winograd,
}

impl Math {
    /// All of them, with their names.
    pub const ALL: [(Math, &str); 5] =
        [(Math::F32, "f32"), (Math::Tf32, "tf32"), (Math::Bf16, "bf16"), (Math::F16, "f16"), (Math::Winograd, "winograd")];
}

impl Math {
    /// The dtype of 16 bits that has all that factors are rounded to, if there is one.
    pub fn narrow(self) -> Option<DType> {
        match self {
            Math::F32 | Math::Tf32 | Math::Winograd => None,
            Math::Bf16 => Some(DType::BF16),
            Math::F16 => Some(DType::F16),
        }
    }
    /// Its name.
    pub fn name(self) -> &'static str {
        Math::ALL.iter().find(|m| m.0 == self).map_or("f32", |m| m.1)
    }
}

/// What most machines bring from L2 in a cycle.
fn near() -> u32 {
    32
}

/// What every GPU gives a block without being asked.
fn shared_bytes() -> u64 {
    48 << 10
}

impl TargetDesc {
    /// Reads a machine file.
    pub fn from_toml(text: &str) -> Result<TargetDesc, String> {
        toml::from_str(text).map_err(|e| e.to_string())
    }
    /// Does it have instructions for products in that precision?
    pub fn takes(&self, math: Math) -> bool {
        match math {
            Math::F32 => true,
            Math::Bf16 => self.block_threads > 0 || self.bf16_dot,
            Math::F16 => self.block_threads > 0 || self.f16_fma || self.tile_f16,
            Math::Tf32 => self.block_threads > 0,
            Math::Winograd => self.block_threads == 0,
        }
    }
    /// Has it tiles for any products?
    pub fn tiles(&self) -> bool {
        self.tile_bf16 || self.tile_f16 || self.tile_bytes
    }
    /// Do rows that are so many bytes apart share lines of L1? So they do at a multiple of the size of a way.
    pub fn rows_collide(&self, apart: i64) -> bool {
        self.l1_way_bytes > 0 && apart > 0 && apart % self.l1_way_bytes as i64 == 0
    }
    /// Are products of bytes added up four at a time, by one instruction or several?
    pub fn groups_bytes(&self) -> bool {
        self.byte_dot || self.byte_dot_signed || self.byte_pairs
    }
    /// Lanes of a vector of elements of `bytes`.
    pub fn lanes(&self, bytes: usize) -> usize {
        (self.vector_bytes as usize / bytes.max(1)).max(1)
    }
}
