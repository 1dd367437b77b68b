//! Products with narrow constant matrices: vectors of 16 bytes where parameters are at multiples of that, the same bits where they are not.

mod tool;

use infc_artifact::program::{Place, Step};
use infc_kernel::build::gemv;
use infc_kernel::plan::Plan;
use infc_kernel::program::{Lowered, lower};
use infc_kernel::target::{Math, TargetDesc};
use infc_ptxvm::{Grid, Memory, Module, launch};

/// A product of so many rows with integers of few bits, with a scale for each column.
fn product(rows: usize, [k, n]: [usize; 2], bits: u32) -> String {
    let half = 1i64 << (bits - 1);
    let value = |i: usize| ((i * 7919 + i / n * 31) as i64 % (2 * half) - half) as f32 * (0.25 + (i % n % 5) as f32 * 0.03);
    let list: Vec<String> = (0..k * n).map(|i| format!("{:?}", value(i))).collect();
    format!(
        "graph \"g\" {{ source 0 \"p\" \"MatMul\" 13 const %0: f32[{k}, {n}] \"w\" = {{{}}} region (%1: f32[{rows}, {k}] \"x\") {{ \
         %2: f32[{rows}, {n}] \"y\" = MatMul(%1, %0) from [0] yield %2 }} }}",
        list.join(", ")
    )
}

fn lowered(text: &str, target: &TargetDesc) -> Lowered {
    let graph = infc_ir::text::parse(text).unwrap_or_else(|e| panic!("{e}"));
    lower(&graph, target, &vec![]).unwrap_or_else(|e| panic!("{e}"))
}

/// What the first launch makes, with parameters so many bytes behind a multiple of 256.
fn run(lowered: &Lowered, target: &TargetDesc, before: usize) -> Vec<u8> {
    let text = infc_gpu_ptx::module(&lowered.kernels, target).unwrap_or_else(|e| panic!("{e}"));
    let module = Module::parse(&text.text).unwrap_or_else(|f| panic!("{f}"));
    let Step::Launch { kernel, buffers, tasks, .. } = &lowered.program.steps[0] else { panic!("a launch") };
    let (k, tasks) = (*kernel as usize, tasks.known().expect("a number"));
    let shape = text.shape(k, tasks, 3);
    let mut memory = Memory::default();
    let mut places = vec![];
    for view in buffers {
        let buffer = &lowered.program.buffers[view.buffer as usize];
        let size = buffer.bytes.known().expect("a number") as usize;
        let numbers = (0..size / 4).flat_map(|i| ((i * 37 % 101) as f32 * 0.125 - 6.0).to_le_bytes()).collect();
        let bytes = match buffer.place {
            Place::Constant(at) => lowered.constants.bytes(at, size).to_vec(),
            Place::Input(_) => numbers,
            _ => vec![0xa5; size],
        };
        places.push(memory.insert([vec![0xa5; before], bytes].concat()) + before as u64);
    }
    let (error, scratch) = (memory.insert(vec![0; 4]), memory.insert(vec![0xa5; shape.scratch as usize]));
    let all: Vec<u64> = places.iter().copied().chain([tasks as u64, error, scratch]).collect();
    let grid = Grid { blocks: [shape.blocks, 1, 1], threads: [shape.threads, 1, 1], shared: shape.shared as usize };
    let entry = module.kernel(&format!("k{k}")).expect("an entry for each kernel");
    launch(entry, grid, &entry.lay_out(&all, &[]), &mut memory).unwrap_or_else(|f| panic!("{f}\n{}", lowered.kernels[k]));
    memory.remove(places.last().expect("a result") - before as u64).expect("a buffer").split_off(before)
}

#[test]
fn parameters_may_be_anywhere() {
    for (rows, size, bits, math) in [
        (1, [256, 67], 4, Math::F32),
        (3, [128, 130], 8, Math::F32),
        (gemv::MOST, [96, 200], 2, Math::F32),
        (20, [256, 70], 4, Math::F32),
        (33, [128, 130], 8, Math::Bf16),
        (64, [128, 144], 4, Math::Tf32),
    ] {
        let target = TargetDesc { math, ..tool::on("sm_80") };
        let made = lowered(&product(rows, size, bits), &target);
        let plan = made.plans.iter().flatten().next().expect("a plan");
        let narrow = match plan {
            Plan::Gemv(_) => rows <= gemv::MOST,
            Plan::Tile(t) => rows > gemv::MOST && t.stored.is_some(),
            _ => false,
        };
        assert!(narrow, "{plan}");
        let results = [0, 4, 8].map(|before| run(&made, &target, before));
        assert!(results.iter().all(|r| *r == results[0]), "{plan}");
    }
}

#[test]
fn vectors_are_read_with_one_instruction() {
    let target = tool::on("sm_80");
    let made = lowered(&product(1, [256, 64], 4), &target);
    let text = infc_gpu_ptx::module(&made.kernels, &target).unwrap_or_else(|e| panic!("{e}")).text;
    // Four columns' vectors of 32 weights, which 8 reads of four numbers serve, in the one of two forms; no numbers are converted.
    assert_eq!(text.matches("ld.global.v4.b32").count(), 4 + 8, "{text}");
    assert!(!text.contains("cvt.rn.f32"), "{text}");
}
