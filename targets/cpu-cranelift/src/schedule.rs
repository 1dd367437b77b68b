//! The order of instructions in the innermost loops of products, for few registers at a time.
//!
//! Cranelift puts an instruction where its result is first asked for. At the end of a loop the sums are asked for one after another, so that all
//! iterations that are written out are computed for the first sum before the second one, with all their factors in registers. Here such blocks are put in
//! another order: sums by the iteration, and before each of them what it alone needs. Knows Cranelift's IR, and no loops.

use cranelift_codegen::ir::{Block, Function, Inst, Opcode, Value, ValueDef};
use std::collections::{HashMap, HashSet};

/// Fewest sums of a block for which it is put in order.
const FEWEST: usize = 4;

/// Puts the blocks of the function in order for which it pays.
pub fn schedule(function: &mut Function) {
    let blocks: Vec<Block> = function.layout.blocks().collect();
    for block in blocks {
        if let Some(order) = ordered(function, block) {
            for &inst in &order {
                function.layout.remove_inst(inst);
            }
            let end = function.layout.last_inst(block).expect("a block ends with a branch");
            for &inst in &order {
                function.layout.insert_inst(inst, end);
            }
            choose_factors(function, &order, end);
        }
    }
}

/// The new order of all instructions of a block but its last, if it is one of sums and nothing in it minds.
fn ordered(function: &Function, block: Block) -> Option<Vec<Inst>> {
    let mut insts: Vec<Inst> = function.layout.block_insts(block).collect();
    insts.pop();
    let dfg = &function.dfg;
    let plain = |inst: &Inst| {
        let op = dfg.insts[*inst].opcode();
        !op.can_store() && !op.is_call() && !op.other_side_effects() && (!op.can_trap() || op == Opcode::Load)
    };
    if !insts.iter().all(plain) {
        return None;
    }
    // Sums are what is made of vectors that come from the iteration before, directly or through others.
    let mut level: HashMap<Value, usize> = HashMap::new();
    level.extend(dfg.block_params(block).iter().filter(|p| dfg.value_type(**p).is_vector()).map(|p| (*p, 0)));
    let mut sums: Vec<(usize, Inst)> = vec![];
    for &inst in &insts {
        if let Some(before) = dfg.inst_args(inst).iter().filter_map(|a| level.get(a)).max() {
            let at = before + 1;
            sums.push((at, inst));
            level.extend(dfg.inst_results(inst).iter().map(|r| (*r, at)));
        }
    }
    if sums.len() < FEWEST {
        return None;
    }
    sums.sort_by_key(|s| s.0);
    let here: HashSet<Inst> = insts.iter().copied().collect();
    let (mut order, mut done) = (vec![], HashSet::new());
    for inst in sums.into_iter().map(|s| s.1).chain(insts) {
        place(function, inst, &here, &mut done, &mut order);
    }
    Some(order)
}

/// An instruction, after those of the block that it needs.
fn place(function: &Function, inst: Inst, here: &HashSet<Inst>, done: &mut HashSet<Inst>, order: &mut Vec<Inst>) {
    if !here.contains(&inst) || !done.insert(inst) {
        return;
    }
    for &arg in function.dfg.inst_args(inst) {
        if let ValueDef::Result(source, _) = function.dfg.value_def(arg) {
            place(function, source, here, done, order);
        }
    }
    order.push(inst);
}

/// On x86-64 a multiply-add overwrites its first factor, of which a copy is made where it has other uses: the factor comes first that has none any more.
fn choose_factors(function: &mut Function, order: &[Inst], end: Inst) {
    let mut needed: HashSet<Value> = function.dfg.inst_values(end).collect();
    for &inst in order.iter().rev() {
        let args = function.dfg.inst_args(inst).to_vec();
        if function.dfg.insts[inst].opcode() == Opcode::Fma && needed.contains(&args[0]) && !needed.contains(&args[1]) {
            function.dfg.inst_args_mut(inst).swap(0, 1);
        }
        needed.extend(args);
    }
}
