//! Kernels that the plans for GPUs make of operators, run by the PTX interpreter: bit by bit what the loop interpreter does, on small
//! integers, for which every order of sums is exact.

mod tool;

use infc_artifact::program::{Place, Step};
use infc_gpu_ptx::{Block, Ptx, Text};
use infc_ir::expr::Node;
use infc_ir::{DType, Expr, eval};
use infc_kernel::backend::Backend;
use infc_kernel::loops::{Access, Boxes, Kernel, Space, interp};
use infc_kernel::program::{Lowered, lower};
use infc_kernel::target::{Math, TargetDesc};
use infc_ptxvm::{Fault, Grid, Memory, Module, launch};
use tool::{map, on};

/// The value of every symbol.
const SIZE: i64 = 37;

fn machine(math: Math) -> TargetDesc {
    TargetDesc { math, ..infc_gpu_ptx::default_machine() }
}

/// The machine that has matrix instructions of warpgroups.
fn hopper(math: Math) -> TargetDesc {
    let machine = infc_gpu_ptx::machines().into_iter().find(|m| m.warpgroups).expect("a machine for Hopper GPUs");
    TargetDesc { math, warpgroup_tiles: 1, ..machine }
}

fn lowered(graph: &str, math: Math) -> Lowered {
    lowered_for(graph, &machine(math))
}

fn lowered_for(graph: &str, target: &TargetDesc) -> Lowered {
    let mut graph = infc_ir::text::parse(graph).unwrap_or_else(|e| panic!("{e}"));
    infc_passes::run(&mut graph, &infc_passes::Options::default()).unwrap_or_else(|e| panic!("{e}"));
    lower(&graph, target, &vec![]).unwrap_or_else(|e| panic!("{e}"))
}

fn number(e: Expr) -> i64 {
    let leaf = |l: Expr| matches!(l.node(), Node::Sym(_)).then_some(SIZE);
    e.eval(&leaf).expect("a size")
}

/// Small integers for each parameter.
fn memories(kernel: &Kernel) -> Vec<Vec<u8>> {
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let mut next = |d: DType| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let v = (seed % 7) as i64 - 3;
        eval::to_memory(d, if d.is_float() { eval::round_float(d, v as f64).to_bits() } else { eval::wrap_int(d, v) as u64 })
    };
    let globals = kernel.buffers.iter().filter(|b| b.space == Space::Global);
    let bytes = |d: DType, n: i64, next: &mut dyn FnMut(DType) -> u64| -> Vec<u8> {
        (0..n).flat_map(|_| next(d).to_le_bytes()[..d.bytes()].to_vec()).collect()
    };
    globals.map(|b| bytes(b.dtype, number(b.span()), &mut next)).collect()
}

/// Runs an entry with blocks of its own size, fewer of them than it has tasks for.
fn run(text: &Text, module: &Module, k: usize, kernel: &Kernel, memories: &mut [Vec<u8>]) -> Result<(), Fault> {
    run_behind(text, module, k, kernel, memories, 0)
}

/// The same with buffers that begin so many bytes behind a multiple of 256.
fn run_behind(
    text: &Text,
    module: &Module,
    k: usize,
    kernel: &Kernel,
    memories: &mut [Vec<u8>],
    before: usize,
) -> Result<(), Fault> {
    let tasks = number(kernel.tasks);
    let shape = text.shape(k, tasks, 3);
    let mut memory = Memory::default();
    let moved = |m: &mut Vec<u8>| [vec![0xa5; before], std::mem::take(m)].concat();
    let places: Vec<u64> = memories.iter_mut().map(|m| memory.insert(moved(m)) + before as u64).collect();
    let (error, scratch) = (memory.insert(vec![0; 4]), memory.insert(vec![0xa5; shape.scratch as usize]));
    let symbols = kernel.symbols.iter().map(|_| SIZE as u64);
    let all = places.iter().copied().chain(symbols).chain([tasks as u64, error, scratch]);
    let maps: Vec<_> = text.tensors(k, &places).map(map).collect();
    let grid = Grid { blocks: [shape.blocks, 1, 1], threads: [shape.threads, 1, 1], shared: shape.shared as usize };
    let entry = module.kernel(&format!("k{k}")).expect("an entry for each kernel");
    let parameters = entry.lay_out(&all.collect::<Vec<_>>(), &maps);
    let done = launch(entry, grid, &parameters, &mut memory);
    for (m, &p) in memories.iter_mut().zip(&places) {
        *m = memory.remove(p - before as u64).expect("a buffer").split_off(before);
    }
    done
}

/// All kernels of a graph; the plans must have these words.
fn check(graph: &str, math: Math, plans: &[&str]) {
    check_for(&machine(math), &["sm_80", "sm_90a"], graph, plans);
}

fn check_for(machine: &TargetDesc, archs: &[&str], graph: &str, plans: &[&str]) {
    let lowered = lowered_for(graph, machine);
    let all: Vec<String> = lowered.plans.iter().flatten().map(ToString::to_string).collect();
    for plan in plans {
        assert!(all.iter().any(|p| p.contains(plan)), "no '{plan}' in {all:?}");
    }
    for &arch in archs {
        let target = TargetDesc { arch: arch.into(), ..machine.clone() };
        let text = infc_gpu_ptx::module(&lowered.kernels, &target).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(Ptx::new(target).emit(&lowered.kernels).expect("code").image.last(), Some(&0));
        let module = Module::parse(&text.text).unwrap_or_else(|f| panic!("{f}"));
        for (k, kernel) in lowered.kernels.iter().enumerate() {
            let (mut want, mut got) = (memories(kernel), memories(kernel));
            let symbols: Vec<i64> = kernel.symbols.iter().map(|_| SIZE).collect();
            interp::run(kernel, &symbols, &mut want).unwrap_or_else(|s| panic!("{s}\n{kernel}"));
            run(&text, &module, k, kernel, &mut got).unwrap_or_else(|f| panic!("{f}\n{kernel}"));
            for (b, (got, want)) in got.iter().zip(&want).enumerate() {
                let d = kernel.buffers[b].dtype;
                let pairs = got.chunks(d.bytes()).zip(want.chunks(d.bytes()));
                let value = |c: &[u8]| eval::from_memory(d, c.iter().rev().fold(0u64, |acc, &b| acc << 8 | u64::from(b)));
                // Tree sums of exponentials round: to 2^-20.
                let equal = |(g, w): (&[u8], &[u8])| {
                    let (x, y) = (value(g), value(w));
                    let (fx, fy) = (f64::from_bits(x), f64::from_bits(y));
                    x == y || d.is_float() && (fx.is_nan() && fy.is_nan() || (fx - fy).abs() <= 1e-6 * fy.abs())
                };
                let wrong = pairs.enumerate().find(|(_, p)| !equal(*p));
                if let Some((at, (g, w))) = wrong {
                    let (g, w) = (f64::from_bits(value(g)), f64::from_bits(value(w)));
                    panic!(
                        "buffer {b}, element {at} ({d}): {g} instead of {w} by {}\n{kernel}",
                        lowered.plans[k].as_ref().expect("a plan")
                    );
                }
            }
        }
    }
}

fn matmul(dtype: &str, m: &str, k: i64, n: i64) -> String {
    format!(
        "graph \"g\" {{ source 0 \"p\" \"MatMul\" 13 region (%0: {dtype}[{m}, {k}] \"a\", %1: {dtype}[{k}, {n}] \"b\") {{ \
         %2: {dtype}[{m}, {n}] \"y\" = MatMul(%0, %1) from [0] yield %2 }} }}"
    )
}

#[test]
fn products_of_floats_in_tiles() {
    // Tiles of 32 rows, where not all multiprocessors have one of 64.
    check(&matmul("f32", "70", 40, 66), Math::F32, &["tile", "row=fma", "block=32x64x16"]);
    check(&matmul("f32", "64", 8, 132 * 64), Math::F32, &["row=fma", "block=64x64x16"]);
    check(&matmul("f32", "n", 33, 65), Math::F32, &["row=fma"]);
    check(&matmul("f64", "20", 17, 30), Math::F32, &["row=fma"]);
}

#[test]
fn products_by_matrix_instructions() {
    check(&matmul("f16", "70", 40, 66), Math::F32, &["row=mma_f16", "block=64x64x32", "grid=2x4"]);
    check(&matmul("bf16", "n", 72, 64), Math::F32, &["row=mma_bf16"]);
    check(&matmul("f32", "64", 33, 64), Math::Tf32, &["row=mma_tf32", "block=64x64x16"]);
    check(&matmul("f32", "30", 33, 70), Math::Bf16, &["row=mma_bf16"]);
    check(&matmul("f32", "30", 33, 70), Math::F16, &["row=mma_f16"]);
}

#[test]
fn long_sums_have_long_tiles_where_a_block_has_the_memory() {
    for (dtype, math, [short, long]) in [
        ("f32", Math::Tf32, ["64x64x16", "64x64x32"]),
        ("f16", Math::F32, ["64x64x32", "64x64x64"]),
        ("f32", Math::Bf16, ["64x64x32", "64x64x64"]),
    ] {
        // Products that end within a tile; parts of a sum; columns whose products lie one behind the other, and across.
        for (m, k, n, turned) in [("40", 291, 33, false), ("n", 516, 64, false), ("64", 1024, 72, true)] {
            let graph = match turned {
                false => matmul(dtype, m, k, n),
                true => matmul(dtype, m, k, n)
                    .replace(&format!("{dtype}[{k}, {n}] \"b\""), &format!("{dtype}[{n}, {k}] \"b\""))
                    .replace("MatMul(%0, %1)", "Gemm(%0, %1) {transB = 1}"),
            };
            check_for(&machine(math), &["sm_80"], &graph, &[&format!("block={short}")]);
            check_for(&hopper(math), &["sm_90a"], &graph, &[&format!("block={long}")]);
            let lowered = lowered_for(&graph, &hopper(math));
            let text = infc_gpu_ptx::module(&lowered.kernels, &on("sm_90a")).unwrap_or_else(|e| panic!("{e}"));
            // Four slots of 64 lines of 128 bytes of both factors, and 16 bytes behind each line or 16 or 32 behind 64 of them.
            assert!(text.shared.iter().any(|s| (69_632..=73_728).contains(s)), "{:?}", text.shared);
            let kernel = &lowered.kernels[text.shared.iter().position(|&s| s > 0).expect("a kernel")];
            let less = TargetDesc { shared_bytes: 48 << 10, ..on("sm_90a") };
            // A machine with less of it has fewer slots of the same tiles, and one with too little is told so.
            assert!(infc_gpu_ptx::module(std::slice::from_ref(kernel), &less).is_ok_and(|t| t.shared == [0]));
            let none = TargetDesc { shared_bytes: 16 << 10, ..on("sm_90a") };
            assert!(Ptx::new(none).refuses(kernel).expect("refused").contains("a block has 16384 at most"));
        }
    }
}

#[test]
fn large_products_have_larger_tiles() {
    check(&matmul("f16", "1024", 8, 1024), Math::F32, &["block=128x128x32", "grid=2x4"]);
}

#[test]
fn products_of_bytes_by_matrix_instructions() {
    for (a, b) in [("u8", "i8"), ("i8", "i8"), ("u8", "u8")] {
        let graph = format!(
            "graph \"g\" {{ source 0 \"p\" \"MatMulInteger\" 10 region (%0: {a}[40, 70] \"a\", %1: {b}[70, 48] \"b\") {{ \
             %2: i32[40, 48] \"y\" = MatMulInteger(%0, %1) from [0] yield %2 }} }}"
        );
        check(&graph, Math::F32, &["row=mma_i8"]);
    }
}

#[test]
fn convolutions_are_products() {
    let conv = |math, row: &str| {
        let graph = "graph \"g\" { source 0 \"c\" \"Conv\" 13 source 1 \"r\" \"Relu\" 13 \
             region (%0: f32[2, 8, 9, 11] \"x\", %1: f32[24, 8, 3, 3] \"w\", %2: f32[24] \"bias\") { \
             %3: f32[2, 24, 9, 11] = Conv(%0, %1, %2) {pads = [1, 1, 1, 1]} from [0] \
             %4: f32[2, 24, 9, 11] \"y\" = Relu(%3) from [1] yield %4 } }";
        check(graph, math, &[row]);
    };
    conv(Math::F32, "row=fma");
    conv(Math::Tf32, "row=mma_tf32");
    conv(Math::F16, "row=mma_f16");
}

#[test]
fn rows_are_reduced_by_warps() {
    let softmax = "graph \"g\" { source 0 \"s\" \"Softmax\" 13 region (%0: f32[n, 70] \"x\") { \
         %1: f32[n, 70] \"y\" = Softmax(%0) from [0] yield %1 } }";
    check(softmax, Math::F32, &["chain steps=4"]);
    let vector = matmul("f32", "1", 300, 40).replace("f32[300, 40] \"b\"", "f32[40, 300] \"b\"");
    let vector = vector.replace("%2: f32[1, 40] \"y\" = MatMul(%0, %1)", "%2: f32[1, 40] \"y\" = Gemm(%0, %1) {transB = 1}");
    check(&vector.replace("\"MatMul\" 13", "\"Gemm\" 13"), Math::F32, &["row_reduce lanes=32"]);
}

#[test]
fn a_barrier_or_a_wait_that_is_missing_is_found() {
    let lowered = lowered(&matmul("f16", "64", 128, 64), Math::F32);
    let text = infc_gpu_ptx::module(&lowered.kernels, &on("sm_80")).unwrap_or_else(|e| panic!("{e}"));
    let without = |what: &str| {
        let broken = text.text.replace(what, "");
        assert!(broken.len() < text.text.len(), "no '{what}'");
        let module = Module::parse(&broken).unwrap_or_else(|f| panic!("{f}"));
        let mut memories = memories(&lowered.kernels[0]);
        run(&text, &module, 0, &lowered.kernels[0], &mut memories).map(|()| memories)
    };
    let right = without("// MatMul\n").expect("only a comment is missing");
    let race = without("\tbar.sync 0;\n").expect_err("threads meet without a barrier");
    assert!(race.what.contains("since the last barrier"), "{race}");
    let early = without("\tcp.async.wait_group 2;\n").expect("it runs");
    assert_ne!(early, right, "tiles that have not come are used");
}

#[test]
fn elementwise_kernels_read_and_write_16_bytes_at_once() {
    let graph = |dtype: &str| {
        format!(
            "graph \"g\" {{ source 0 \"a\" \"Add\" 13 source 1 \"r\" \"Relu\" 13 \
             region (%0: {dtype}[64, 1024] \"x\", %1: {dtype}[1024] \"b\") {{ \
             %2: {dtype}[64, 1024] = Add(%0, %1) from [0] %3: {dtype}[64, 1024] \"y\" = Relu(%2) from [1] yield %3 }} }}"
        )
    };
    for (dtype, wide, form) in [("f32", 4, "ld.global.v4.b32"), ("f64", 2, "ld.global.v2.b64"), ("f16", 4, "ld.global.v4.u16")] {
        check(&graph(dtype), Math::F32, &[&format!("wide={wide}")]);
        let text =
            infc_gpu_ptx::module(&lowered(&graph(dtype), Math::F32).kernels, &on("sm_80")).unwrap_or_else(|e| panic!("{e}"));
        assert!(text.text.contains(form) && text.text.contains("st.global.v"), "{}", text.text);
    }
}

#[test]
fn kernels_say_who_takes_a_task() {
    let blocks = |graph: &str| {
        let lowered = lowered(graph, Math::F32);
        infc_gpu_ptx::module(&lowered.kernels, &on("sm_80")).unwrap_or_else(|e| panic!("{e}"))
    };
    let text = blocks(&matmul("f16", "64", 32, 64));
    assert_eq!(text.blocks, [Block::Block(256)]);
    assert!(text.text.starts_with("//@ k0 blocks 256\n") && text.text.contains("mma.sync") && text.text.contains("ldmatrix"));
    // Neighbours that lie in a multiple of 16 bytes are copied by themselves, others through registers.
    assert!(text.text.contains("cp.async") && !blocks(&matmul("f16", "64", 33, 65)).text.contains("cp.async.cg"));
    assert_eq!(blocks(&matmul("f32", "3", 5, 7)).blocks, [Block::Threads]);
}

/// `MatMul` of factors whose last two axes are exchanged before, where told, with an epilogue.
fn product(dtype: &str, [batch, m, k, n]: [i64; 4], turned: [bool; 2]) -> String {
    let (lead, order) = if batch > 1 { (format!("{batch}, "), "[0, 2, 1]") } else { (String::new(), "[1, 0]") };
    let shape = |r: i64, c: i64, turned: bool| if turned { format!("{lead}{c}, {r}") } else { format!("{lead}{r}, {c}") };
    let mut body = String::new();
    let names = [0, 1].map(|i| {
        if !turned[i] {
            return format!("%{i}");
        }
        let [r, c] = [[m, k], [k, n]][i];
        body += &format!("%{}: {dtype}[{lead}{r}, {c}] = Transpose(%{i}) {{perm = {order}}} from [1] ", 3 + i);
        format!("%{}", 3 + i)
    });
    let (a, b, [x, y]) = (shape(m, k, turned[0]), shape(k, n, turned[1]), &names);
    format!(
        "graph \"g\" {{ source 0 \"p\" \"MatMul\" 13 source 1 \"t\" \"Transpose\" 13 source 2 \"a\" \"Add\" 13 source 3 \"r\" \"Relu\" 13 \
         region (%0: {dtype}[{a}] \"a\", %1: {dtype}[{b}] \"b\", %2: {dtype}[{n}] \"bias\") {{ \
         {body}%5: {dtype}[{lead}{m}, {n}] = MatMul({x}, {y}) from [0] %6: {dtype}[{lead}{m}, {n}] = Add(%5, %2) from [2] \
         %7: {dtype}[{lead}{m}, {n}] \"y\" = Relu(%6) from [3] yield %7 }} }}"
    )
}

#[test]
fn warpgroups_multiply_large_products() {
    let check = |graph: &str, math, row: &str| check_for(&hopper(math), &["sm_90a"], graph, &[row, "grid=8x1"]);
    // Tasks enough for blocks to take several, so that slots go round between them.
    check(&product("f16", [1, 140, 200, 136], [false, false]), Math::F32, "row=wgmma_f16");
    check(&product("bf16", [1, 131, 67, 129], [false, false]), Math::F32, "row=wgmma_bf16");
    check(&product("bf16", [2, 128, 64, 136], [true, true]), Math::F32, "row=wgmma_bf16");
    check(&product("f16", [1, 257, 248, 136], [false, true]), Math::F32, "row=wgmma_f16");
    check(&product("f16", [1, 130, 72, 136], [true, false]), Math::F32, "row=wgmma_f16");
    check(&product("f32", [1, 128, 50, 130], [false, false]), Math::Tf32, "row=wgmma_tf32");
    check(&product("f32", [1, 130, 64, 128], [false, true]), Math::Tf32, "row=wgmma_tf32");
    check(&product("f32", [1, 128, 329, 128], [false, false]), Math::Bf16, "row=wgmma_bf16");
    check(&product("f32", [1, 130, 80, 130], [true, true]), Math::F16, "row=wgmma_f16");
}

#[test]
fn parts_of_long_sums_stay_with_warps() {
    // Parts were made in such a number that small tiles fill the machine.
    let graph = product("f16", [1, 130, 512, 130], [false, false]);
    let plans: Vec<String> = lowered_for(&graph, &hopper(Math::F32)).plans.iter().flatten().map(ToString::to_string).collect();
    assert!(plans.len() == 2 && plans.iter().all(|p| !p.contains("wgmma")), "{plans:?}");
    check_for(&hopper(Math::F32), &["sm_90a"], &graph, &["row=mma_f16"]);
}

#[test]
fn warpgroups_multiply_bytes() {
    for (a, b, k) in [("u8", "i8", 144), ("i8", "i8", 240), ("u8", "u8", 129), ("i8", "u8", 128)] {
        let graph = format!(
            "graph \"g\" {{ source 0 \"p\" \"MatMulInteger\" 10 region (%0: {a}[130, {k}] \"a\", %1: {b}[{k}, 129] \"b\") {{ \
             %2: i32[130, 129] \"y\" = MatMulInteger(%0, %1) from [0] yield %2 }} }}"
        );
        check_for(&hopper(Math::F32), &["sm_90a"], &graph, &["row=wgmma_i8", "block=128x128x128"]);
        let version = infc_gpu_ptx::module(&lowered_for(&graph, &hopper(Math::F32)).kernels, &on("sm_90a")).expect("text").text;
        assert!(version.contains(if a == b { ".version 8.0" } else { ".version 8.4" }));
    }
}

#[test]
fn warpgroups_take_convolutions() {
    let graph = "graph \"g\" { source 0 \"c\" \"Conv\" 13 source 1 \"r\" \"Relu\" 13 \
         region (%0: f16[2, 16, 9, 11] \"x\", %1: f16[130, 16, 3, 3] \"w\", %2: f16[130] \"bias\") { \
         %3: f16[2, 130, 9, 11] = Conv(%0, %1, %2) {pads = [1, 1, 1, 1]} from [0] \
         %4: f16[2, 130, 9, 11] \"y\" = Relu(%3) from [1] yield %4 } }";
    check_for(&hopper(Math::F32), &["sm_90a"], graph, &["row=wgmma_f16"]);
}

#[test]
fn larger_tiles_where_there_are_many() {
    // Too many for the interpreter: how they are printed.
    let lowered = lowered_for(&product("bf16", [1, 4096, 64, 4096], [false, false]), &hopper(Math::F32));
    let plans: Vec<String> = lowered.plans.iter().flatten().map(ToString::to_string).collect();
    assert!(plans.iter().any(|p| p.contains("block=128x256x64")), "{plans:?}");
    let text = infc_gpu_ptx::module(&lowered.kernels, &on("sm_90a")).unwrap_or_else(|e| panic!("{e}"));
    assert!(text.text.contains("m64n256k16") && text.text.contains("setmaxnreg"));
    assert_eq!(text.blocks, [Block::Block(384)]);
}

/// A product or convolution of data, and how many of its factors' tiles are boxes, of how many axes.
fn boxes() -> Vec<(String, Vec<u32>)> {
    // Channels last, as other layers have them.
    let conv = |[n, c, h, w]: [i64; 4], [m, kh, kw]: [i64; 3], attributes: &str, [oh, ow]: [i64; 2]| {
        format!(
            "graph \"g\" {{ source 0 \"c\" \"Conv\" 13 source 1 \"t\" \"Transpose\" 13 \
             region (%0: f16[{n}, {h}, {w}, {c}] \"x\", %1: f16[{m}, {c}, {kh}, {kw}] \"w\") {{ \
             %5: f16[{n}, {c}, {h}, {w}] = Transpose(%0) {{perm = [0, 3, 1, 2]}} from [1] \
             %3: f16[{n}, {m}, {oh}, {ow}] = Conv(%5, %1) {{{attributes}}} from [0] \
             %4: f16[{n}, {oh}, {ow}, {m}] \"y\" = Transpose(%3) {{perm = [0, 2, 3, 1]}} from [1] yield %4 }} }}"
        )
    };
    vec![
        // Rows, columns and products that end within a box.
        (product("f16", [1, 140, 200, 136], [false, false]), vec![2, 2]),
        (product("bf16", [1, 257, 248, 136], [false, true]), vec![2, 2]),
        // A batch is an axis more.
        (product("bf16", [3, 130, 72, 136], [false, false]), vec![3, 3]),
        // Rows of 134 bytes are at no multiple of 16; columns of 136 are.
        (product("bf16", [1, 131, 67, 136], [false, false]), vec![2]),
        (product("bf16", [1, 128, 67, 129], [false, false]), vec![]),
        // Rows side by side are not as the instruction wants them.
        (product("f16", [1, 136, 72, 136], [true, false]), vec![2]),
        // Pixels of several pictures one behind the other; every second one of every second row.
        (conv([2, 64, 9, 8], [136, 1, 1], "", [9, 8]), vec![2, 2]),
        (conv([2, 64, 32, 32], [136, 1, 1], "strides = [2, 2]", [16, 16]), vec![3, 2]),
        // Windows over a border (of weights that lie in another order), whose rows of pixels fill a box, or do not.
        (conv([1, 64, 16, 16], [136, 1, 3], "pads = [0, 1, 0, 1]", [16, 16]), vec![3]),
        (conv([2, 64, 8, 32], [136, 3, 1], "pads = [1, 0, 1, 0]", [8, 32]), vec![4]),
        (conv([2, 64, 8, 9], [136, 1, 3], "pads = [0, 1, 0, 1]", [8, 9]), vec![]),
    ]
}

#[test]
fn boxes_of_tensors_come_by_tensor_maps() {
    for (graph, axes) in boxes() {
        let machine = hopper(Math::F32);
        check_for(&machine, &["sm_90a"], &graph, &["row=wgmma"]);
        let lowered = lowered_for(&graph, &machine);
        let k =
            lowered.plans.iter().position(|p| p.as_ref().is_some_and(|p| p.to_string().contains("wgmma"))).expect("a product");
        let text = infc_gpu_ptx::module(&lowered.kernels, &on("sm_90a")).unwrap_or_else(|e| panic!("{e}"));
        let found: Vec<u32> = text.maps[k].iter().map(|m| m.axes.len() as u32).collect();
        assert_eq!(found, axes, "{graph}\n{}", lowered.kernels[k]);
        // The loops that the boxes stand for: as they are, and where no parameter is aligned.
        let kernel = &lowered.kernels[k];
        let mut plain = lowered.kernels.clone();
        plain[k].boxes = Boxes::default();
        let other = infc_gpu_ptx::module(&plain, &on("sm_90a")).unwrap_or_else(|e| panic!("{e}"));
        assert!(other.maps[k].is_empty() && !other.text.contains("cp.async.bulk.tensor"));
        let results = [(&text, 0), (&other, 0), (&text, 8), (&other, 8)].map(|(text, before)| {
            let module = Module::parse(&text.text).unwrap_or_else(|f| panic!("{f}"));
            let mut got = memories(kernel);
            run_behind(text, &module, k, kernel, &mut got, before).unwrap_or_else(|f| panic!("{f}\n{kernel}"));
            got
        });
        assert!(results.iter().all(|r| *r == results[0]), "{kernel}");
    }
}

#[test]
fn boxes_that_nobody_counts_are_told() {
    let lowered = lowered_for(&product("bf16", [1, 384, 248, 256], [false, false]), &hopper(Math::F32));
    let text = infc_gpu_ptx::module(&lowered.kernels, &on("sm_90a")).unwrap_or_else(|e| panic!("{e}"));
    let told = |from: &str, to: &str, what: &str| {
        let broken = text.text.replace(from, to);
        assert!(broken != text.text, "no '{from}'");
        let module = Module::parse(&broken).unwrap_or_else(|f| panic!("{f}"));
        let fault = run(&text, &module, 0, &lowered.kernels[0], &mut memories(&lowered.kernels[0])).expect_err(what);
        assert!(fault.what.contains(what), "{from}: {fault}");
    };
    let line = text.text.lines().find(|l| l.contains("mbarrier.arrive.expect_tx")).expect("an arrival with bytes");
    told(line, &line.replace(", 16384;", ", 16368;"), "nobody completes");
    told(line, &line.replace(", 16384;", ", 16400;"), "nobody completes");
    told("\twgmma.wait_group.sync.aligned 1;\n", "", "may still read");
    told("\tcvta.param.u64", "\tmov.b64", "no parameter");
    let parity =
        text.text.lines().find(|l| l.contains("xor.b32") && l.ends_with(", 1;") && !l.contains('@')).expect("the parity");
    told(parity, &parity.replace(", 1;", ", 0;"), "");
    // A map of another tensor leads out of the buffer.
    let mut wrong = text.clone();
    wrong.maps[0][0].axes[1].0 += 1;
    let module = Module::parse(&text.text).unwrap_or_else(|f| panic!("{f}"));
    let kernel = &lowered.kernels[0];
    let mut got = memories(kernel);
    run(&wrong, &module, 0, kernel, &mut got).expect("rows behind the last tile are not asked for");
    wrong.maps[0][0].offset += 16;
    let fault = run(&wrong, &module, 0, kernel, &mut memories(kernel)).expect_err("it reads behind the buffer");
    assert!(fault.what.contains("a copy by a tensor map reads"), "{fault}");
}

#[test]
fn rounded_factors_are_read_several_at_a_time() {
    let graph = product("f32", [1, 130, 80, 136], [false, false]);
    for (math, arch, machine) in [(Math::Bf16, "sm_80", machine(Math::Bf16)), (Math::Tf32, "sm_90a", hopper(Math::Tf32))] {
        let lowered = lowered_for(&graph, &machine);
        let text = infc_gpu_ptx::module(&lowered.kernels, &on(arch)).unwrap_or_else(|e| panic!("{e}"));
        let stored = if math == Math::Tf32 { "st.shared.v4.b32" } else { "st.shared.v4.u16" };
        assert!(text.text.contains(" ld.global.v4.b32 {") && text.text.contains(stored), "{}", text.text);
        let module = Module::parse(&text.text).unwrap_or_else(|f| panic!("{f}"));
        for (k, kernel) in lowered.kernels.iter().enumerate() {
            let results = [0, 4].map(|before| {
                let mut got = memories(kernel);
                run_behind(&text, &module, k, kernel, &mut got, before).unwrap_or_else(|f| panic!("{f}\n{kernel}"));
                got
            });
            assert!(results[0] == results[1], "{kernel}");
        }
    }
}

/// Products whose tiles have an even number of rows, and what asks for the tiles of the factor that both blocks of a cluster read.
fn clustered() -> Vec<(String, Math, &'static str)> {
    let (tensor, kept) = ("cp.async.bulk.tensor.2d", Math::F32);
    let bytes = |a: &str, b: &str| {
        format!(
            "graph \"g\" {{ source 0 \"p\" \"MatMulInteger\" 10 source 1 \"t\" \"Transpose\" 13 region (%0: {a}[250, 240] \"a\", %1: {b}[144, 240] \"b\") {{ \
             %3: {b}[240, 144] = Transpose(%1) {{perm = [1, 0]}} from [1] %2: i32[250, 144] \"y\" = MatMulInteger(%0, %3) from [0] yield %2 }} }}"
        )
    };
    vec![
        // Boxes one beside the other, and boxes that are cut; more tasks than blocks.
        (product("f16", [1, 256, 200, 136], [false, false]), kept, tensor),
        (product("bf16", [1, 500, 248, 264], [false, false]), kept, tensor),
        (product("bf16", [1, 250, 200, 264], [false, true]), kept, tensor),
        (product("bf16", [3, 256, 136, 136], [false, false]), kept, "cp.async.bulk.tensor.3d"),
        (bytes("u8", "i8"), kept, tensor),
        // An odd number of rows, an even one of columns.
        (product("f16", [1, 384, 72, 256], [false, false]), kept, tensor),
        // Rows that no map can bring: copies of 16 bytes, or elements that are rounded on the way.
        (product("f16", [1, 264, 72, 136], [true, false]), kept, ""),
        (product("f16", [1, 256, 72, 136], [true, false]), kept, tensor),
        (product("f16", [1, 250, 67, 136], [false, false]), kept, tensor),
    ]
}

#[test]
fn two_blocks_bring_tiles_to_each_other() {
    for (graph, math, way) in clustered() {
        let machine = hopper(math);
        check_for(&machine, &["sm_90a"], &graph, &["row=wgmma"]);
        let lowered = lowered_for(&graph, &machine);
        let text = infc_gpu_ptx::module(&lowered.kernels, &on("sm_90a")).unwrap_or_else(|e| panic!("{e}"));
        let k =
            lowered.plans.iter().position(|p| p.as_ref().is_some_and(|p| p.to_string().contains("wgmma"))).expect("a product");
        let line = text.text.lines().find(|l| l.contains("multicast::cluster"));
        if way.is_empty() {
            assert!(line.is_none() && text.clusters[k] == 1, "{}", text.text);
            continue;
        }
        assert!(line.is_some_and(|l| l.contains(way)), "{line:?} in {}", text.text);
        assert_eq!(text.clusters[k], 2);
        assert!(text.text.contains(".explicitcluster\n.reqnctapercluster 2\n") && text.text.contains(" cluster 2"));
        assert_eq!([1, 3, 4].map(|most| text.shape(k, 100, most).blocks), [2, 2, 4]);
        let module = Module::parse(&text.text).unwrap_or_else(|f| panic!("{f}"));
        let kernel = &lowered.kernels[k];
        let results = [0, 8].map(|before| {
            let mut got = memories(kernel);
            run_behind(&text, &module, k, kernel, &mut got, before).unwrap_or_else(|f| panic!("{f}\n{kernel}"));
            got
        });
        assert!(results[0] == results[1], "{kernel}");
    }
}

#[test]
fn blocks_that_do_not_wait_for_each_other_are_told() {
    let lowered = lowered_for(&product("bf16", [1, 512, 248, 256], [false, false]), &hopper(Math::F32));
    let text = infc_gpu_ptx::module(&lowered.kernels, &on("sm_90a")).unwrap_or_else(|e| panic!("{e}"));
    let changed = |broken: String| {
        assert!(broken != text.text, "nothing is changed");
        let module = Module::parse(&broken).unwrap_or_else(|f| panic!("{f}"));
        run(&text, &module, 0, &lowered.kernels[0], &mut memories(&lowered.kernels[0]))
    };
    let told = |from: &str, to: &str, what: &str| {
        assert!(text.text.contains(from), "no '{from}' in {}", text.text);
        let fault = changed(text.text.replace(from, to)).expect_err(what);
        assert!(fault.what.contains(what), "{from}: {fault}");
    };
    changed(text.text.replace("// MatMul", "// Product")).expect("only a comment is another one");
    told("\tfence.mbarrier_init.release.cluster;\n", "", "without fence.mbarrier_init");
    told("\tbarrier.cluster.wait.acquire.aligned;\n", "", "mbarrier");
    told("\tbarrier.cluster.arrive.release.aligned;\n", "", "without having come there");
    // Fillers that look at half of the arrivals ask for copies into slots that the other block still reads.
    told(", 16;\n\tmbarrier", ", 8;\n\tmbarrier", "");
    told("mbarrier.arrive.shared::cluster.b64", "mbarrier.arrive.shared.b64", "no mbarrier");
    // A block that does not wait until the other one has told its slots to be free.
    let waits: Vec<usize> = text.text.match_indices("mbarrier.try_wait").map(|w| w.0).collect();
    let first = waits[waits.len() - 4];
    let cut = text.text[..first].rfind("\nL").expect("a label") + 1;
    let label = text.text[cut..].split(':').next().expect("its name");
    let broken = format!("{}{label}:\n\tret;\n{}", &text.text[..cut], &text.text[cut + label.len() + 2..]);
    let fault = changed(broken).expect_err("a block that ends too early");
    assert!(fault.what.contains("which has ended"), "{fault}");
}

#[test]
fn results_are_stored_several_at_once() {
    // Columns, and the accesses that they are stored and biases are read by.
    for (dtype, n, math, group, words) in [
        ("bf16", 136, Math::F32, true, &["st.global.v4.b32", "shfl.sync.bfly", "ld.global.v2.u16"][..]),
        ("f16", 130, Math::F32, true, &["st.global.b32", "ld.global.v2.u16"]),
        ("bf16", 129, Math::F32, true, &[]),
        ("f32", 134, Math::Tf32, true, &["st.global.v2.b32", "ld.global.v2.b32"]),
        ("f32", 133, Math::Bf16, true, &[]),
        ("f16", 136, Math::F32, false, &["st.global.b32", "ld.global.v2.u16"]),
        ("f32", 130, Math::Tf32, false, &["st.global.v2.b32", "ld.global.v2.b32"]),
    ] {
        let graph = product(dtype, [1, 140, 72, n], [false, false]);
        let (machine, arch) = if group { (hopper(math), "sm_90a") } else { (machine(math), "sm_80") };
        check_for(&machine, &[arch], &graph, &[if group { "row=wgmma" } else { "row=mma" }]);
        let lowered = lowered_for(&graph, &machine);
        let text = infc_gpu_ptx::module(&lowered.kernels, &on(arch)).unwrap_or_else(|e| panic!("{e}"));
        let product = text.text.split(".visible").find(|t| t.contains("mma")).expect("a product");
        for word in
            ["st.global.v4.b32", "shfl.sync.bfly", "st.global.b32", "st.global.v2.b32", "ld.global.v2.u16", "ld.global.v2.b32"]
        {
            // Of 32 bits there is one for a single element too.
            let single = dtype == "f32" && word == "st.global.b32";
            assert!(single || product.contains(word) == words.contains(&word), "{word} in {n} columns of {dtype}\n{product}");
        }
        // Buffers that begin anywhere.
        let module = Module::parse(&text.text).unwrap_or_else(|f| panic!("{f}"));
        for (k, kernel) in lowered.kernels.iter().enumerate() {
            let results = [0, 4, 8, 10].map(|before| {
                let mut got = memories(kernel);
                let before = if dtype == "f32" { before / 4 * 4 } else { before };
                run_behind(&text, &module, k, kernel, &mut got, before).unwrap_or_else(|f| panic!("{f}\n{kernel}"));
                got
            });
            assert!(results.iter().all(|r| *r == results[0]), "{kernel}");
        }
    }
}

#[test]
fn warpgroups_that_do_not_wait_are_told() {
    let mut lowered = lowered_for(&product("bf16", [1, 384, 248, 256], [false, false]), &hopper(Math::F32));
    // By copies of threads.
    lowered.kernels[0].boxes = Boxes::default();
    let text = infc_gpu_ptx::module(&lowered.kernels, &on("sm_90a")).unwrap_or_else(|e| panic!("{e}"));
    let changed = |from: &str, to: &str| {
        let broken = text.text.replace(from, to);
        assert!(broken != text.text, "no '{from}'");
        let module = Module::parse(&broken).unwrap_or_else(|f| panic!("{f}"));
        run(&text, &module, 0, &lowered.kernels[0], &mut memories(&lowered.kernels[0]))
    };
    let told = |from: &str, to: &str, what: &str| {
        let fault = changed(from, to).expect_err(what);
        assert!(fault.what.contains(what), "{from}: {fault}");
    };
    changed("// MatMul", "// Product").expect("only a comment is another one");
    told("\twgmma.wait_group.sync.aligned 1;\n", "", "may still read");
    told("\twgmma.wait_group.sync.aligned 0;\n", "", "not waited for");
    told("\twgmma.wait_group.sync.aligned 1;\n", "\twgmma.wait_group.sync.aligned 2;\n", "may still read");
    told("\twgmma.fence.sync.aligned;\n", "", "wgmma.fence");
    told("\tfence.proxy.async.shared::cta;\n", "", "without fence.proxy.async");
    // Copies come when they are waited for, which is after they were told of.
    told("\tcp.async.wait_group 2;\n", "\tcp.async.wait_group 3;\n", "without an order");
    told("\tcp.async.wait_all;\n", "", "a copy that is not waited for");
    // Fillers that do not look whether a slot is free.
    let parity =
        text.text.lines().find(|l| l.contains("xor.b32") && l.ends_with(", 1;") && !l.contains('@')).expect("the parity");
    told(parity, &parity.replace(", 1;", ", 0;"), "mbarrier");
    told("bar.sync 0;", "", "mbarrier");
}

/// A product with a constant on one side, beside the sums themselves: the constant lies in tiles, which bulk copies bring.
fn constant_product(dtype: DType, math: Math, [m, k, n]: [i64; 3], constant: usize, row: &str) -> (Lowered, String) {
    // In f32 two of them keep it from being narrow: there are no scales for them all, and no fewer bits than the instruction takes.
    let odd = match math {
        _ if dtype != DType::F32 => [0, 0],
        Math::Tf32 => [131_072, 1025],
        _ => [384, 129],
    };
    let value = |a: i64, b: i64| match (a, b) {
        (1, 2) if odd[0] > 0 => odd[0],
        (2, 1) if odd[1] > 0 => odd[1],
        _ => (a * 7 + b * 5 + a * b) % 7 - 3,
    };
    let [r, c] = [[m, k], [k, n]][constant];
    let list: Vec<String> = (0..r * c).map(|i| format!("{}.0", value(i / c, i % c))).collect();
    let [sr, sc] = [[k, n], [m, k]][constant];
    let (a, b) = if constant == 0 { ("%0", "%1") } else { ("%1", "%0") };
    let name = dtype.to_string();
    let graph = format!(
        "graph \"g\" {{ source 0 \"p\" \"MatMul\" 13 const %0: {name}[{r}, {c}] \"w\" = {{{}}} region (%1: {name}[{sr}, {sc}] \"x\") {{ \
         %2: {name}[{m}, {n}] \"y\" = MatMul({a}, {b}) from [0] yield %2 }} }}",
        list.join(", ")
    );
    let lowered = lowered_for(&graph, &hopper(math));
    let plan = lowered.plans[0].as_ref().expect("a plan").to_string();
    assert!(plan.contains(row), "{plan}");
    let text = infc_gpu_ptx::module(&lowered.kernels, &on("sm_90a")).unwrap_or_else(|e| panic!("{e}"));
    let module = Module::parse(&text.text).unwrap_or_else(|f| panic!("{f}"));
    let kernel = &lowered.kernels[0];
    let mut got = memories(kernel);
    let Step::Launch { buffers, .. } = &lowered.program.steps[0] else { panic!("a launch") };
    for (to, view) in got.iter_mut().zip(buffers) {
        if let Place::Constant(at) = lowered.program.buffers[view.buffer as usize].place {
            let len = to.len();
            to.copy_from_slice(lowered.constants.bytes(at, len));
        }
    }
    let number = |d: DType, bytes: &[u8]| {
        f64::from_bits(eval::from_memory(d, bytes.iter().rev().fold(0u64, |acc, &b| acc << 8 | u64::from(b))))
    };
    let at = |p: &dyn Fn(&infc_kernel::loops::Buffer, usize) -> bool| {
        (0..got.len()).find(|&b| p(&kernel.buffers[b], b)).expect("a buffer")
    };
    let constants: Vec<bool> =
        buffers.iter().map(|v| matches!(lowered.program.buffers[v.buffer as usize].place, Place::Constant(_))).collect();
    let x = at(&|b, k| b.access == Access::Read && !constants[k]);
    let y = at(&|b, _| b.access == Access::Write);
    let factor: Vec<f64> = got[x].chunks(dtype.bytes()).map(|c| number(dtype, c)).collect();
    run(&text, &module, 0, kernel, &mut got).unwrap_or_else(|f| panic!("{f}\n{kernel}"));
    for i in 0..m {
        for j in 0..n {
            let product = |p: i64| match constant {
                0 => value(i, p) as f64 * factor[(p * n + j) as usize],
                _ => factor[(i * k + p) as usize] * value(p, j) as f64,
            };
            let want = eval::round_float(dtype, (0..k).map(product).sum::<f64>());
            let found = number(dtype, &got[y][(i * n + j) as usize * dtype.bytes()..][..dtype.bytes()]);
            assert_eq!(found, want, "row {i}, column {j} of {plan}\n{kernel}");
        }
    }
    (lowered, text.text)
}

#[test]
fn constant_factors_come_by_bulk_copies() {
    for (dtype, math, size, constant, row) in [
        (DType::F16, Math::F32, [130, 80, 136], 1, "row=wgmma_f16"),
        (DType::BF16, Math::F32, [128, 72, 129], 0, "row=wgmma_bf16"),
        (DType::F32, Math::Bf16, [129, 65, 130], 1, "row=wgmma_bf16"),
        (DType::F32, Math::F16, [128, 64, 128], 0, "row=wgmma_f16"),
        // Those of tf32 are rounded when they are compiled.
        (DType::F32, Math::Tf32, [128, 40, 128], 1, "row=wgmma_tf32"),
    ] {
        let (_, text) = constant_product(dtype, math, size, constant, row);
        assert!(text.contains("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"), "{text}");
    }
    // Two blocks that bring it to each other.
    for (size, constant) in [([256, 200, 136], 1), ([250, 136, 130], 1), ([256, 72, 136], 0)] {
        let (lowered, text) = constant_product(DType::F16, Math::F32, size, constant, "row=wgmma_f16");
        let bulk = text.contains("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster");
        assert_eq!(bulk, constant == 1, "{text}");
        drop(lowered);
    }
}

#[test]
fn bulk_copies_that_nobody_counts_are_told() {
    let (lowered, text) = constant_product(DType::F16, Math::F32, [257, 248, 136], 1, "row=wgmma_f16");
    let shapes = infc_gpu_ptx::module(&lowered.kernels, &on("sm_90a")).unwrap_or_else(|e| panic!("{e}"));
    let told = |from: &str, to: &str, what: &str| {
        let broken = text.replace(from, to);
        assert!(broken != text, "no '{from}'");
        let module = Module::parse(&broken).unwrap_or_else(|f| panic!("{f}"));
        let fault = run(&shapes, &module, 0, &lowered.kernels[0], &mut memories(&lowered.kernels[0])).expect_err(what);
        assert!(fault.what.contains(what), "{from}: {fault}");
    };
    let line = text.lines().find(|l| l.contains("mbarrier.arrive.expect_tx")).expect("an arrival with bytes");
    told(line, &line.replace(", 16384;", ", 16368;"), "nobody completes");
    told(line, &line.replace(", 16384;", ", 16400;"), "nobody completes");
    // Fillers that do not look whether a slot is free.
    let parity = text.lines().find(|l| l.contains("xor.b32") && l.ends_with(", 1;") && !l.contains('@')).expect("the parity");
    told(parity, &parity.replace(", 1;", ", 0;"), "");
}
