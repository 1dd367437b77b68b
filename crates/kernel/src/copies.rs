//! Copies between a device and the host, where steps of both sides use the same buffers.
//!
//! A buffer has a place on each side. Walking the steps, we know which side has its newest contents; before a step that uses a buffer whose
//! newest contents are on the other side stands a copy of all of it. Where two ways meet (the branches of an `If`, the rounds of a
//! loop), they leave each buffer in the same state, with copies at their ends. Copies move whole buffers, so that a step that writes a part of
//! one, or perhaps a part, needs the rest of it first. Inputs, constants and states are on both sides before the first step; outputs and states that the device
//! touches are there after the last one. A buffer that only one side touches is never copied.

use crate::loops::{Access, Kernel};
use infc_artifact::program::{HostValue, Place, Program, Step, View};
use infc_artifact::validate::count_steps;
use std::collections::HashSet;

/// A side that steps run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The device.
    Device,
    /// The host beside it.
    Host,
}

/// Who has the newest contents of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nobody: it holds nothing of worth.
    Nothing,
    /// This side.
    Only(Side),
    /// Both.
    Both,
}

/// Puts copies into the steps of a program for a device, whose buffers know their lives; these follow the new numbers of the steps. Gives the first
/// and last step of each loop, inner loops first.
///
/// `whole` has the numbers of the launches that write all of what they write to.
pub fn insert(program: &mut Program, device: &[Kernel], host: &[Kernel], whole: &HashSet<u32>) -> Vec<(u32, u32)> {
    let sides = program.sides();
    let shared: Vec<bool> = sides.device.iter().zip(&sides.host).map(|(d, h)| *d && *h).collect();
    let mut pass = Pass { program, kernels: [device, host], whole, state: start(program), shared };
    let mut steps = pass.list(&program.steps, 0);
    for (b, buffer) in program.buffers.iter().enumerate() {
        if matches!(buffer.place, Place::Output(_) | Place::State(_)) {
            pass.need(Side::Device, b as u32, &mut steps);
        }
    }
    renumber(program, steps)
}

/// Before the first step.
fn start(program: &Program) -> Vec<State> {
    let state = |place: &Place| match place {
        Place::Input(_) | Place::Constant(_) | Place::State(_) => State::Both,
        Place::Output(_) | Place::Arena { .. } => State::Nothing,
    };
    program.buffers.iter().map(|b| state(&b.place)).collect()
}

struct Pass<'a> {
    program: &'a Program,
    kernels: [&'a [Kernel]; 2],
    whole: &'a HashSet<u32>,
    state: Vec<State>,
    /// Buffers that both sides touch.
    shared: Vec<bool>,
}

impl Pass<'_> {
    /// The steps with copies between them; the first one has this number.
    fn list(&mut self, steps: &[Step], mut number: u32) -> Vec<Step> {
        let mut out = Vec::with_capacity(steps.len());
        for step in steps {
            self.step(step, number, &mut out);
            number += count_steps(std::slice::from_ref(step)) as u32;
        }
        out
    }

    fn step(&mut self, step: &Step, number: u32, out: &mut Vec<Step>) {
        let end = number + count_steps(std::slice::from_ref(step)) as u32 - 1;
        match step {
            Step::Launch { kernel, buffers, .. } => self.launch((Side::Device, *kernel), number, buffers, out),
            Step::HostLaunch { kernel, buffers, .. } => self.launch((Side::Host, *kernel), number, buffers, out),
            Step::Copy { from, to, .. } => {
                self.need(Side::Device, from.buffer, out);
                self.write(Side::Device, to.buffer, out);
            }
            Step::Host { inputs, outputs, .. } => {
                let buffer = |v: &HostValue| if let HostValue::Tensor { view, .. } = v { Some(view.buffer) } else { None };
                inputs.iter().flatten().filter_map(buffer).for_each(|b| self.need(Side::Host, b, out));
                outputs.iter().filter_map(buffer).for_each(|b| self.write(Side::Host, b, out));
            }
            Step::Bind { from, .. } => self.need(Side::Device, from.buffer, out),
            Step::Require { .. } => {}
            Step::If { cond, then, otherwise } => {
                self.need(Side::Device, cond.buffer, out);
                let before = self.state.clone();
                let mut then_steps = self.list(then, number + 1);
                let after = std::mem::replace(&mut self.state, before);
                let mut other_steps = self.list(otherwise, number + 1 + count_steps(then) as u32);
                self.meet(&after, end, &mut then_steps, &mut other_steps);
                out.push(Step::If { cond: cond.clone(), then: then_steps, otherwise: other_steps });
                return;
            }
            Step::Loop { counter, count, cond, body, apart } => {
                cond.iter().for_each(|c| self.need(Side::Device, c.buffer, out));
                let body = self.rounds(body, cond.as_ref(), (number, end));
                out.push(Step::Loop { counter: *counter, count: count.clone(), cond: cond.clone(), body, apart: *apart });
                return;
            }
            Step::ToHost { .. } | Step::ToDevice { .. } => {}
        }
        out.push(step.clone());
    }

    fn launch(&mut self, (side, kernel): (Side, u32), number: u32, views: &[View], out: &mut Vec<Step>) {
        let whole = self.whole.contains(&number);
        let kernel = &self.kernels[side as usize][kernel as usize];
        let views = || views.iter().zip(&kernel.buffers);
        let needed = views().filter(|(_, b)| !whole || b.access != Access::Write);
        needed.for_each(|(v, _)| self.need(side, v.buffer, out));
        let written = views().filter(|(_, b)| b.access != Access::Read);
        written.for_each(|(v, _)| self.state[v.buffer as usize] = State::Only(side));
    }

    /// A side is about to use a buffer.
    fn need(&mut self, side: Side, buffer: u32, out: &mut Vec<Step>) {
        let b = buffer as usize;
        if let State::Only(other) = self.state[b]
            && other != side
            && self.shared[b]
        {
            out.push(match side {
                Side::Device => Step::ToDevice { buffer },
                Side::Host => Step::ToHost { buffer },
            });
            self.state[b] = State::Both;
        }
    }

    /// A side writes to a buffer, perhaps only to a part of it.
    fn write(&mut self, side: Side, buffer: u32, out: &mut Vec<Step>) {
        self.need(side, buffer, out);
        self.state[buffer as usize] = State::Only(side);
    }

    /// Does anybody after step `end` see what is in a buffer now?
    fn alive(&self, b: usize, end: u32) -> bool {
        match self.program.buffers[b].place {
            Place::Arena { last, .. } => last > end,
            Place::Input(_) | Place::Output(_) | Place::Constant(_) | Place::State(_) => true,
        }
    }

    /// Makes the state after one branch (`after`) and that after the other one (the present one) the same.
    fn meet(&mut self, after: &[State], end: u32, then: &mut Vec<Step>, otherwise: &mut Vec<Step>) {
        for b in 0..self.state.len() {
            self.state[b] = match (after[b], self.state[b]) {
                _ if !self.shared[b] || !self.alive(b, end) => State::Nothing,
                (a, c) if a == c => a,
                (State::Nothing | State::Both, s) | (s, State::Nothing | State::Both) => s,
                (State::Only(first), State::Only(_)) => {
                    let host = if first == Side::Host { &mut *then } else { &mut *otherwise };
                    host.push(Step::ToDevice { buffer: b as u32 });
                    State::Only(Side::Device)
                }
            };
        }
    }

    /// The body of a loop, which leaves each buffer in the state that it began with: that is looked for first.
    fn rounds(&mut self, body: &[Step], cond: Option<&View>, (start, end): (u32, u32)) -> Vec<Step> {
        // A buffer that only this loop uses, and that no round leaves to the next one, begins each round with nothing.
        let within = |place: &Place| matches!(*place, Place::Arena { first, last, .. } if first > start && last <= end);
        let inner: Vec<bool> = self.program.buffers.iter().map(|b| within(&b.place)).collect();
        loop {
            let before = self.state.clone();
            let mut steps = self.list(body, start + 1);
            if let Some(cond) = cond {
                self.need(Side::Device, cond.buffer, &mut steps);
            }
            let mut first = before.clone();
            for b in 0..first.len() {
                if !self.shared[b] || inner[b] {
                    continue;
                }
                first[b] = match (before[b], self.state[b]) {
                    (State::Nothing | State::Both, s) if s != State::Nothing => s,
                    (s, _) => s,
                };
            }
            if first != before {
                self.state = first;
                continue;
            }
            for b in 0..before.len() {
                match before[b] {
                    State::Only(side) if self.shared[b] && !inner[b] => self.need(side, b as u32, &mut steps),
                    State::Only(_) | State::Nothing | State::Both => {}
                }
            }
            self.state = before;
            return steps;
        }
    }
}

/// Gives the program its new steps, and its buffers lives by their new numbers; first and last step of each loop.
fn renumber(program: &mut Program, steps: Vec<Step>) -> Vec<(u32, u32)> {
    /// The new number of each old step, the new numbers of copies with their buffers, and the loops.
    #[derive(Default)]
    struct Numbers {
        of: Vec<u32>,
        copies: Vec<(u32, u32)>,
        loops: Vec<(u32, u32)>,
        next: u32,
    }
    fn walk(steps: &[Step], n: &mut Numbers) {
        for step in steps {
            let own = n.next;
            n.next += 1;
            match step {
                Step::ToHost { buffer } | Step::ToDevice { buffer } => {
                    n.copies.push((*buffer, own));
                    continue;
                }
                _ => n.of.push(own),
            }
            match step {
                Step::If { then, otherwise, .. } => {
                    walk(then, n);
                    walk(otherwise, n);
                }
                Step::Loop { body, .. } => {
                    walk(body, n);
                    n.loops.push((own, n.next - 1));
                }
                _ => {}
            }
        }
    }
    let mut numbers = Numbers::default();
    walk(&steps, &mut numbers);
    program.steps = steps;
    for (b, buffer) in program.buffers.iter_mut().enumerate() {
        if let Place::Arena { first, last, .. } = &mut buffer.place {
            let new = |old: u32| numbers.of.get(old as usize).copied().unwrap_or(old);
            (*first, *last) = (new(*first), new(*last));
            for &(_, at) in numbers.copies.iter().filter(|c| c.0 as usize == b) {
                (*first, *last) = ((*first).min(at), (*last).max(at));
            }
        }
    }
    numbers.loops
}
