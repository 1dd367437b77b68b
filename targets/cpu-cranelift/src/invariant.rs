//! What does not change in loops is computed outside of all of them.
//!
//! Cranelift takes an instruction out of the loops that its operands stand outside of. A constant stands just outside of the innermost loop that uses it, and so
//! what is computed with constants, as addresses are, leaves no other loop. While code is optimised, integer constants therefore have
//! a use in the first block, an *anchor*, which is taken away before machine code is made. Knows Cranelift's IR, and no loops.

use cranelift_codegen::cursor::{Cursor, FuncCursor};
use cranelift_codegen::ir::{
    Function, Inst, InstBuilder, InstructionData, MemFlagsData, Opcode, StackSlot, StackSlotData, StackSlotKind, Type, Value,
    types,
};

/// Uses of constants in the first block of a function, in which some loop is.
pub struct Anchors {
    stores: Vec<Inst>,
    slot: Option<StackSlot>,
}

/// Puts anchors into a function.
pub fn anchor(function: &mut Function) -> Anchors {
    let Some(entry) = function.layout.entry_block() else { return Anchors { stores: vec![], slot: None } };
    let mut constants: Vec<(Type, i64)> = vec![];
    for block in function.layout.blocks() {
        for inst in function.layout.block_insts(block) {
            if let InstructionData::UnaryImm { opcode: Opcode::Iconst, imm } = function.dfg.insts[inst] {
                constants.push((function.dfg.value_type(function.dfg.first_result(inst)), imm.bits()));
            }
        }
    }
    constants.sort_by_key(|(ty, value)| (ty.bits(), *value));
    constants.dedup();
    let slot = function.create_sized_stack_slot(StackSlotData::new(StackSlotKind::ExplicitSlot, 8, 3));
    let last = function.layout.last_inst(entry).expect("a block ends with a branch");
    let mut cursor = FuncCursor::new(function).at_inst(last);
    let place: Value = cursor.ins().stack_addr(types::I64, slot, 0);
    // Each at a place of its own: a store over another one would take that away.
    let anchors = constants.into_iter().enumerate().map(|(i, (ty, value))| {
        let constant = cursor.ins().iconst(ty, value);
        cursor.ins().store(MemFlagsData::new().with_notrap(), constant, place, 8 * i as i32)
    });
    let anchors: Vec<Inst> = anchors.collect();
    function.sized_stack_slots[slot].size = 8 * anchors.len() as u32;
    Anchors { stores: anchors, slot: Some(slot) }
}

impl Anchors {
    /// Takes them away.
    pub fn weigh(self, function: &mut Function) {
        for inst in self.stores {
            if function.layout.inst_block(inst).is_some() {
                function.layout.remove_inst(inst);
            }
        }
        // Nothing uses it any more.
        if let Some(slot) = self.slot {
            function.sized_stack_slots[slot].size = 0;
        }
    }
}
