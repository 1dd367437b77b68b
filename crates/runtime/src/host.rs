//! Values of the host: strings, sequences, optionals, maps. Host steps call routines of `infc-host` on them; sessions take and give them.

use crate::error::{Error, ErrorKind, fail};
use crate::exec::Exec;
use crate::model::Model;
use crate::session::{PortId, Session};
use crate::tensor::TensorRef;
use alloc::format;
use alloc::vec::Vec;
use infc_artifact::program::{HostType, HostValue, Message, Program, SlotPlace, Step};
use infc_host::{Data, Routine, Tensor, Value, dtype};

/// What host steps need, checked when the model is loaded.
#[derive(Default)]
pub(crate) struct Hosted {
    /// The routine of each step that has one, by the step's number.
    routines: Vec<Option<Routine>>,
    /// The values of slots that are constant.
    constants: Vec<Option<Value>>,
}

impl Hosted {
    pub(crate) fn load(program: &Program, constants: &[u8]) -> Result<Hosted, Error> {
        let mut hosted = Hosted::default();
        hosted.visit(program, &program.steps)?;
        for (i, slot) in program.slots.iter().enumerate() {
            let SlotPlace::Constant { offset, bytes } = slot.place else {
                hosted.constants.push(None);
                continue;
            };
            // `validate` checked that it lies in the constants.
            match Value::decode(&constants[offset as usize..(offset + bytes) as usize]) {
                Ok(value) => hosted.constants.push(Some(value)),
                Err(e) => fail!(Artifact, "malformed: slot {i}: {e}"),
            }
        }
        Ok(hosted)
    }

    fn visit(&mut self, program: &Program, steps: &[Step]) -> Result<(), Error> {
        for step in steps {
            let number = self.routines.len();
            self.routines.push(None);
            match step {
                Step::Host { routine, attributes, inputs, outputs, code } => {
                    let node = &program.messages[*code as usize].node;
                    let made = match Routine::decode(routine, attributes) {
                        Ok(made) => made,
                        Err(e) => fail!(Artifact, "malformed: step {number}, {node}: {e}"),
                    };
                    let (least, most, results) = made.arity();
                    if inputs.len() < least || inputs.len() > most || outputs.len() != results {
                        let (i, o) = (inputs.len(), outputs.len());
                        fail!(Artifact, "malformed: step {number}, {node}: '{routine}' with {i} operands and {o} results");
                    }
                    self.routines[number] = Some(made);
                }
                Step::If { then, otherwise, .. } => {
                    self.visit(program, then)?;
                    self.visit(program, otherwise)?;
                }
                Step::Loop { body, .. } => self.visit(program, body)?,
                Step::Launch { .. }
                | Step::Copy { .. }
                | Step::Bind { .. }
                | Step::Require { .. }
                | Step::HostLaunch { .. }
                | Step::ToHost { .. }
                | Step::ToDevice { .. } => {}
            }
        }
        Ok(())
    }
}

/// True if a value is of a type.
fn fits(ty: &HostType, value: &Value) -> bool {
    match (ty, value) {
        (HostType::Tensor(dtype, dims), Value::Tensor(t)) => {
            let same = |(want, got): (&Option<u64>, &usize)| want.is_none_or(|w| w == *got as u64);
            *dtype == t.dtype() && dims.len() == t.dims().len() && dims.iter().zip(t.dims()).all(same)
        }
        (HostType::Any(dtype), Value::Tensor(t)) => *dtype == t.dtype(),
        (HostType::Sequence(of), Value::Sequence(items)) => items.iter().all(|v| fits(of, v)),
        (HostType::Optional(of), Value::Optional(v)) => v.as_ref().is_none_or(|v| fits(of, v)),
        (HostType::Map(_, of), Value::Map(entries)) => entries.iter().all(|(_, v)| fits(of, v)),
        _ => false,
    }
}

/// The values of all slots, before a run.
pub(crate) fn slots(program: &Program) -> Vec<Option<Value>> {
    program.slots.iter().map(|_| None).collect()
}

/// Forgets what steps have made, but outputs if `keep`.
pub(crate) fn forget(program: &Program, slots: &mut [Option<Value>], keep: bool) {
    for (slot, value) in program.slots.iter().zip(slots) {
        if matches!(slot.place, SlotPlace::Temp) || matches!(slot.place, SlotPlace::Output(_)) && !keep {
            *value = None;
        }
    }
}

impl Session {
    /// Sets an input to a value of the host, which is not copied and stays for all further runs. An input that is a tensor of numbers
    /// takes its elements, as [`Session::set_input`] does.
    pub fn set_value<'a>(&mut self, port: impl Into<PortId<'a>>, value: Value) -> Result<(), Error> {
        let i = self.input_number(port.into())?;
        let (model, info) = (self.model().clone(), self.model().inputs()[i].clone());
        let port = &model.program.inputs[i];
        if !port.is_host() {
            let Value::Tensor(t) = &value else {
                fail!(Input, "input {i} '{}': expected {info}, given {value}", info.name);
            };
            let dims: Vec<i64> = t.dims().iter().map(|&d| d as i64).collect();
            let dtype = crate::DType(t.dtype());
            return self.set_input(i, TensorRef { dtype, dims: &dims, bytes: t.bytes() });
        }
        if !fits(&model.program.slots[port.buffer as usize].ty, &value) {
            fail!(Input, "input {i} '{}': expected {info}, given {value}", info.name);
        }
        let dims = value.as_tensor().map_or(&[][..], |t| t.dims()).iter().take(port.dims.len()).map(|&d| d as i64);
        self.hold_host_input(i, dims.collect());
        self.frame.slots[port.buffer as usize] = Some(value);
        Ok(())
    }

    /// An output of the last run as a value of the host. A tensor of numbers is copied.
    pub fn value<'a>(&self, port: impl Into<PortId<'a>>) -> Result<Value, Error> {
        let i = self.output_number(port.into())?;
        let port = &self.model().program.outputs[i];
        if port.is_host() {
            let value = self.frame.slots[port.buffer as usize].as_ref().filter(|_| self.has_output(i));
            return match value {
                Some(value) => Ok(value.clone()),
                None => fail!(Output, "output {i} '{}' has no value: run the model first", port.name),
            };
        }
        let t = self.output(i)?;
        let dims = t.dims.iter().map(|&d| d as usize).collect();
        let made = Tensor::from_bytes(t.dtype.0, dims, t.bytes.to_vec());
        made.map(Value::Tensor).map_err(|e| Error::new(ErrorKind::Output, format!("output {i} '{}': {e}", port.name)))
    }
}

impl Exec<'_> {
    /// Runs a host step.
    pub(crate) fn host(
        &mut self,
        number: usize,
        inputs: &[Option<HostValue>],
        outputs: &[HostValue],
        code: u32,
    ) -> Result<(), Error> {
        let model = self.model;
        let node = &model.program.messages[code as usize];
        let Some(routine) = &model.hosted.routines[number] else { fail!(Run, "step {number} has no routine") };
        let mut read = Vec::with_capacity(inputs.len());
        for value in inputs {
            read.push(match value {
                Some(HostValue::Tensor { dtype, dims, view }) => Some(self.read_tensor(number, *dtype, dims, view)?),
                Some(HostValue::Slot(_)) | None => None,
            });
        }
        let mut operands = Vec::with_capacity(inputs.len());
        for (value, read) in inputs.iter().zip(&read) {
            operands.push(match value {
                None => None,
                Some(HostValue::Tensor { .. }) => read.as_ref(),
                Some(HostValue::Slot(slot)) => match self.slot(model, *slot) {
                    None => fail!(Run, "{}: slot {slot} has no value yet", node.node),
                    found => found,
                },
            });
        }
        let results = routine.run(&operands).map_err(|e| Error::new(ErrorKind::Run, format!("{}: {e}", node.node)))?;
        for (value, made) in outputs.iter().zip(results) {
            match value {
                HostValue::Slot(slot) => self.frame.slots[*slot as usize] = Some(made),
                HostValue::Tensor { dtype, dims, view } => self.write_tensor(number, node, (*dtype, dims), view, &made)?,
            }
        }
        Ok(())
    }

    fn slot<'s>(&'s self, model: &'s Model, slot: u32) -> Option<&'s Value> {
        model.hosted.constants[slot as usize].as_ref().or(self.frame.slots[slot as usize].as_ref())
    }

    /// A tensor in a buffer as a value.
    fn read_tensor(
        &self,
        number: usize,
        dtype: u8,
        dims: &[infc_artifact::program::Size],
        view: &infc_artifact::program::View,
    ) -> Result<Value, Error> {
        let sizes = dims.iter().map(|d| usize::try_from(self.value(d)).ok()).collect::<Option<Vec<usize>>>();
        let width = dtype::width(dtype).unwrap_or(0);
        let bytes = sizes.as_ref().and_then(|s| s.iter().try_fold(width, |n, &d| n.checked_mul(d)));
        let (Some(sizes), Some(bytes)) = (sizes, bytes) else { fail!(Run, "step {number}: an operand of negative size") };
        let at = self.address(number, view, bytes)?;
        // Safety: so many bytes of a buffer, which nothing writes during this step.
        let data = unsafe { core::slice::from_raw_parts(at, bytes) }.to_vec();
        let made = Tensor::from_bytes(dtype, sizes, data);
        made.map(Value::Tensor).map_err(|e| Error::new(ErrorKind::Run, format!("step {number}: {e}")))
    }

    /// Writes a result into a buffer, if it is what the buffer was made for.
    fn write_tensor(
        &mut self,
        number: usize,
        node: &Message,
        (dtype, dims): (u8, &[infc_artifact::program::Size]),
        view: &infc_artifact::program::View,
        made: &Value,
    ) -> Result<(), Error> {
        let sizes: Vec<i64> = dims.iter().map(|d| self.value(d)).collect();
        let tensor = made.as_tensor().filter(|t| {
            t.dtype() == dtype && t.dims().len() == sizes.len() && t.dims().iter().zip(&sizes).all(|(&a, &b)| a as i64 == b)
        });
        let Some(Data::Bytes(bytes)) = tensor.map(Tensor::data) else {
            fail!(Run, "{}: its result is {made}, {}{sizes:?} is needed", node.node, dtype::name(dtype));
        };
        let at = self.address(number, view, bytes.len())?;
        // Safety: so many bytes of a buffer, apart from the value, whose memory is its own.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len()) };
        Ok(())
    }
}
