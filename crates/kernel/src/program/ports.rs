//! Inputs, outputs and states of a program, and values of the host.

use super::{Emit, States};
use crate::loops::Access;
use crate::work::{Arg, SlotMemory};
use infc_artifact::program::{self as art, HostType, HostValue, Place, SlotPlace, Step, SymbolSource, View};
use infc_ir::expr::Node;
use infc_ir::{DType, Expr, Type};

impl Emit<'_> {
    pub(super) fn inputs(&mut self) {
        let work = self.work;
        self.slots();
        for (i, (_, arg)) in work.inputs.iter().enumerate() {
            for (axis, d) in self.port_dims(*arg).iter().enumerate() {
                if let Node::Sym(s) = d.node() {
                    self.symbol(s, SymbolSource::Input { input: i as u32, axis: axis as u32 });
                }
            }
        }
        for (i, (name, arg)) in work.inputs.iter().enumerate() {
            if let Arg::Tensor(id) = arg {
                self.add_buffer(*id, Place::Input(i as u32));
            }
            let port = self.port(name, *arg);
            self.out.program.inputs.push(port);
        }
        for (i, (_, arg)) in work.outputs.iter().enumerate() {
            if let Arg::Tensor(id) = arg {
                self.add_buffer(*id, Place::Output(i as u32));
            }
        }
    }

    /// The checks of the inputs' sizes, before all else.
    pub(super) fn requirements(&mut self) -> Vec<Step> {
        let work = self.work;
        let mut steps = vec![];
        for r in &work.requires {
            let (left, right) = (self.size(r.left), self.size(r.right));
            let text = if r.assumed { format!("{}; {}", r.text, r.problem().help) } else { r.text.clone() };
            let code = self.message(&r.at, &text);
            steps.push(Step::Require { left, right, or_one: r.or_one, code });
            self.position += 1;
        }
        steps
    }

    pub(super) fn outputs(&mut self) {
        let work = self.work;
        for (name, arg) in &work.outputs {
            let port = self.port(name, *arg);
            self.out.program.outputs.push(port);
        }
    }

    pub(super) fn states(&mut self, states: &States) {
        for (output, input) in states {
            let o = self.work.outputs.iter().position(|(n, _)| n == output);
            let i = self.work.inputs.iter().position(|(n, _)| n == input);
            match (o, i) {
                (Some(o), Some(i)) => {
                    let at = format!("state {output}={input}");
                    match (self.work.outputs[o].1, self.work.inputs[i].1) {
                        (Arg::Tensor(a), Arg::Tensor(b)) => {
                            let (a, b) = (&self.work.tensor(a).ty, &self.work.tensor(b).ty);
                            if a != b {
                                let message = format!("{a} and {b} differ");
                                self.problem(&at, message, "state needs an output of the input's type");
                            }
                        }
                        _ => self.problem(&at, "is no tensor of numbers", "keep it in the caller and set it before each run"),
                    }
                    self.out.program.states.push((o as u32, i as u32));
                }
                _ => self.problem(
                    &format!("state {output}={input}"),
                    "the model has no such output and input",
                    "write OUT=IN with the model's own names; `infc inspect` lists them",
                ),
            }
        }
    }

    /// Dims of an input or output; none if it is no tensor.
    pub(super) fn port_dims(&self, arg: Arg) -> Vec<Expr> {
        match arg {
            Arg::Tensor(id) => self.work.tensor(id).ty.dims.clone(),
            Arg::Slot(slot) => self.work.slots[slot as usize].ty.as_tensor().map_or(vec![], |t| t.dims.clone()),
        }
    }

    pub(super) fn port(&mut self, name: &str, arg: Arg) -> art::Port {
        let dims = self.port_dims(arg).iter().map(|&d| self.size(d)).collect();
        let (dtype, element, buffer) = match arg {
            Arg::Tensor(id) => {
                let dtype = self.work.tensor(id).ty.dtype;
                (dtype.onnx() as u8, dtype.bytes() as u8, self.buffers[&id])
            }
            Arg::Slot(slot) => {
                let text = self.work.slots[slot as usize].ty.as_tensor().map(|t| t.dtype.onnx() as u8);
                (text.unwrap_or(0), 0, slot)
            }
        };
        art::Port { name: name.to_owned(), dtype, element, dims, buffer }
    }

    /// The places for values of the host; constants get their bytes at the end.
    pub(super) fn slots(&mut self) {
        for slot in &self.work.slots {
            let place = match slot.memory {
                SlotMemory::Input(i) => SlotPlace::Input(i),
                SlotMemory::Output(i) => SlotPlace::Output(i),
                SlotMemory::Constant(_) => SlotPlace::Constant { offset: 0, bytes: 0 },
                SlotMemory::Temp => SlotPlace::Temp,
            };
            self.out.program.slots.push(art::Slot { ty: host_type(&slot.ty), place });
        }
    }

    pub(super) fn host_value(&mut self, arg: Arg, access: Access) -> HostValue {
        match arg {
            Arg::Slot(slot) => HostValue::Slot(slot),
            Arg::Tensor(id) => {
                let (_, buffer, offset) = self.operand(id, access);
                let ty = self.work.tensor(id).ty.clone();
                let dims = ty.dims.iter().map(|&d| self.size(d)).collect();
                HostValue::Tensor { dtype: ty.dtype.onnx() as u8, dims, view: View { buffer, offset: self.size(offset) } }
            }
        }
    }
}

/// A type in the artifact's terms.
fn host_type(ty: &Type) -> HostType {
    let code = |d: &DType| d.onnx() as u8;
    match ty {
        Type::Tensor(t) => {
            HostType::Tensor(code(&t.dtype), t.dims.iter().map(|d| d.known().and_then(|n| u64::try_from(n).ok())).collect())
        }
        Type::Any(d) | Type::Nothing(d) => HostType::Any(code(d)),
        Type::Sequence(of) => HostType::Sequence(Box::new(host_type(of))),
        Type::Optional(of) => HostType::Optional(Box::new(host_type(of))),
        Type::Map(key, of) => HostType::Map(code(key), Box::new(host_type(of))),
    }
}
