//! Runs what a graph was lowered to.
#![allow(dead_code, reason = "each test uses a part")]

use infc_artifact::program::{Place, Step, SymbolSource, View};
use infc_ir::Tensor;
use infc_kernel::loops::{Access, interp};
use infc_kernel::program::Lowered;
use infc_kernel::target::TargetDesc;
use infc_ptxvm::{Grid, MAP_BYTES, Memory, Module, TensorMap, launch};

/// The map of a tensor.
pub fn map((width, address, axes): (usize, u64, Vec<(u64, u64, u32)>)) -> [u8; MAP_BYTES] {
    if address == 0 {
        return [0; MAP_BYTES];
    }
    TensorMap { width, address, axes }.encode().unwrap_or_else(|e| panic!("{e}"))
}

/// The machine of an architecture.
pub fn on(arch: &str) -> TargetDesc {
    infc_gpu_ptx::machines().into_iter().find(|m| m.arch == arch).expect("a machine of this architecture")
}

/// Launches of a graph, one after another, on fewer blocks than there are tasks; by the loop interpreter if `loops`.
pub fn run(lowered: &Lowered, target: &TargetDesc, inputs: &[Tensor], loops: bool) -> Vec<Vec<u8>> {
    let text = infc_gpu_ptx::module(&lowered.kernels, target).unwrap_or_else(|e| panic!("{e}"));
    let module = Module::parse(&text.text).unwrap_or_else(|f| panic!("{f}"));
    let p = &lowered.program;
    let from_inputs = p.symbols.iter().map(|s| match s.source {
        SymbolSource::Input { input, axis } => inputs[input as usize].dims[axis as usize] as i64,
        SymbolSource::Step => 0,
    });
    let mut symbols: Vec<i64> = from_inputs.collect();
    let known = symbols.clone();
    let size = |b: &infc_artifact::program::Buffer| b.bytes.eval(&known).expect("a number") as usize;
    let mut memory: Vec<Vec<u8>> = p.buffers.iter().map(|b| vec![0xa5; size(b)]).collect();
    for (m, b) in memory.iter_mut().zip(&p.buffers) {
        match b.place {
            Place::Input(i) => *m = inputs[i as usize].bytes().to_vec(),
            Place::Constant(at) => m.copy_from_slice(lowered.constants.bytes(at, size(b))),
            _ => {}
        }
    }
    for step in &p.steps {
        if let Step::Bind { symbol, from, .. } = step {
            let at = from.offset.eval(&symbols).expect("a number") as usize;
            let bytes = &memory[from.buffer as usize][at..at + 8];
            symbols[*symbol as usize] = i64::from_le_bytes(bytes.try_into().expect("8 bytes"));
            continue;
        }
        let value = |s: &infc_artifact::program::Size| s.eval(&symbols).expect("a number");
        let Step::Launch { kernel, buffers, extents, tasks } = step else {
            assert!(matches!(step, Step::Require { .. }), "{step:?}");
            continue;
        };
        let (k, tasks) = (*kernel as usize, value(tasks));
        let extents: Vec<i64> = extents.iter().map(value).collect();
        let from = |v: &View| memory[v.buffer as usize][value(&v.offset) as usize..].to_vec();
        let mut own: Vec<Vec<u8>> = buffers.iter().map(from).collect();
        if loops {
            interp::run(&lowered.kernels[k], &extents, &mut own).unwrap_or_else(|s| panic!("{s}\n{}", lowered.kernels[k]));
        } else {
            let shape = text.shape(k, tasks, 3);
            let mut device = Memory::default();
            let places: Vec<u64> = own.iter_mut().map(|m| device.insert(std::mem::take(m))).collect();
            let (error, scratch) = (device.insert(vec![0; 4]), device.insert(vec![0xa5; shape.scratch as usize]));
            let symbols = extents.iter().map(|&e| e as u64);
            let all = places.iter().copied().chain(symbols).chain([tasks as u64, error, scratch]);
            let maps: Vec<_> = text.tensors(k, &places).map(map).collect();
            let grid = Grid { blocks: [shape.blocks, 1, 1], threads: [shape.threads, 1, 1], shared: shape.shared as usize };
            let entry = module.kernel(&format!("k{k}")).expect("an entry for each kernel");
            let parameters = entry.lay_out(&all.collect::<Vec<_>>(), &maps);
            launch(entry, grid, &parameters, &mut device).unwrap_or_else(|f| panic!("{f}\n{}", lowered.kernels[k]));
            own.iter_mut().zip(&places).for_each(|(m, &p)| *m = device.remove(p).expect("a buffer"));
        }
        for ((view, made), b) in buffers.iter().zip(own).zip(&lowered.kernels[k].buffers) {
            if b.access != Access::Read {
                memory[view.buffer as usize][value(&view.offset) as usize..].copy_from_slice(&made);
            }
        }
    }
    p.outputs.iter().map(|o| memory[o.buffer as usize].clone()).collect()
}
