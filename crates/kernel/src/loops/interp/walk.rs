//! The slow twin: every statement for every lane, scalars by [`infc_ir::eval`]. It defines the loop IR in executable form.

use super::{Memory, Stop, check_dtype};
use crate::loops::{Kernel, LoopKind, Stmt};
use infc_ir::expr::Node;
use infc_ir::{DType, Expr, Scalar, eval};
use std::cell::RefCell;

/// Runs all tasks.
pub(super) fn run(kernel: &Kernel, memory: &mut Memory) -> Result<(), Stop> {
    Machine { kernel, memory }.tasks()
}

impl Memory<'_> {
    /// The byte where an element begins.
    fn place(&self, n: u32, index: &[i64]) -> Result<usize, Stop> {
        let width = self.buffer(n)?.dtype.bytes();
        let shape = &self.shapes[n as usize];
        let inside = index.len() == shape.dims.len() && index.iter().zip(&shape.dims).all(|(&i, &d)| (0..d).contains(&i));
        let at: i64 = index.iter().zip(&shape.strides).map(|(&i, &s)| i.saturating_mul(s)).fold(0, i64::saturating_add);
        let byte = usize::try_from(at).ok().and_then(|at| at.checked_mul(width));
        let byte = byte.filter(|&b| inside && b + width <= self.bytes[n as usize].len());
        byte.ok_or_else(|| self.outside(n, index))
    }

    fn load(&self, n: u32, index: &[i64], dtype: DType) -> Result<u64, Stop> {
        check_dtype(n, self.buffer(n)?, dtype)?;
        let place = self.place(n, index)?;
        let mut raw = [0u8; 8];
        raw[..dtype.bytes()].copy_from_slice(&self.bytes[n as usize][place..place + dtype.bytes()]);
        Ok(eval::from_memory(dtype, u64::from_le_bytes(raw)))
    }

    fn store(&mut self, n: u32, index: &[i64], value: u64) -> Result<(), Stop> {
        let dtype = self.buffer(n)?.dtype;
        let place = self.place(n, index)?;
        let raw = eval::to_memory(dtype, value).to_le_bytes();
        self.bytes[n as usize][place..place + dtype.bytes()].copy_from_slice(&raw[..dtype.bytes()]);
        Ok(())
    }
}

/// One lane: values of variables and locals.
#[derive(Clone, Default)]
struct Lane {
    vars: Vec<Option<i64>>,
    locals: Vec<Option<u64>>,
}

fn put<T: Clone>(list: &mut Vec<Option<T>>, at: u32, value: T) {
    if list.len() <= at as usize {
        list.resize(at as usize + 1, None);
    }
    list[at as usize] = Some(value);
}

struct Machine<'a, 'k> {
    kernel: &'a Kernel,
    memory: &'a mut Memory<'k>,
}

impl Machine<'_, '_> {
    fn leaf(&self, lane: &Lane, e: Expr) -> Option<i64> {
        match e.node() {
            Node::Var(v) => lane.vars.get(*v as usize).copied().flatten(),
            _ => None,
        }
    }
    fn index(&self, lane: &Lane, e: Expr) -> Result<i64, Stop> {
        e.eval(&|l| self.leaf(lane, l)).ok_or_else(|| Stop::Internal(format!("{e} uses a variable without a value")))
    }
    fn tasks(&mut self) -> Result<(), Stop> {
        for task in 0..self.index(&Lane::default(), self.kernel.tasks)? {
            let mut lane = Lane::default();
            put(&mut lane.vars, self.kernel.task, task);
            self.all(&self.kernel.body, &mut [lane], &[0])?;
        }
        Ok(())
    }

    fn all(&mut self, body: &[Stmt], lanes: &mut [Lane], active: &[usize]) -> Result<(), Stop> {
        if active.is_empty() {
            return Ok(());
        }
        body.iter().try_for_each(|s| self.statement(s, lanes, active))
    }

    fn statement(&mut self, s: &Stmt, lanes: &mut [Lane], active: &[usize]) -> Result<(), Stop> {
        match s {
            Stmt::For { var, extent, kind, body } => {
                let extent = self.uniform(*extent, lanes, active)?;
                if *kind == LoopKind::Vector && lanes.len() == 1 {
                    let copies = active.iter().flat_map(|&l| (0..extent).map(move |i| (l, i)));
                    let mut inner: Vec<Lane> = vec![];
                    for (l, i) in copies {
                        let mut lane = lanes[l].clone();
                        put(&mut lane.vars, *var, i);
                        inner.push(lane);
                    }
                    let all: Vec<usize> = (0..inner.len()).collect();
                    return self.all(body, &mut inner, &all);
                }
                for i in 0..extent {
                    active.iter().for_each(|&l| put(&mut lanes[l].vars, *var, i));
                    self.all(body, lanes, active)?;
                }
                Ok(())
            }
            Stmt::While { cond, body } => {
                while self.value(*cond, &lanes[active[0]])? != 0 {
                    if let Some(&odd) = self.differ(*cond, lanes, active)?.1.first() {
                        return Err(Stop::Internal(format!("the condition {cond} of a while loop differs in lane {odd}")));
                    }
                    self.all(body, lanes, active)?;
                }
                Ok(())
            }
            Stmt::Let { local, value } => {
                for &l in active {
                    let v = self.value(*value, &lanes[l])?;
                    put(&mut lanes[l].locals, *local, v);
                }
                Ok(())
            }
            Stmt::Store { buffer, index, value } => {
                let mut writes = vec![];
                for &l in active {
                    let at: Vec<i64> =
                        index.iter().map(|&i| self.value(i, &lanes[l]).map(|v| v as i64)).collect::<Result<_, _>>()?;
                    writes.push((at, self.value(*value, &lanes[l])?));
                }
                writes.into_iter().try_for_each(|(at, v)| self.memory.store(*buffer, &at, v))
            }
            Stmt::Prefetch { .. } => Ok(()),
            Stmt::Alloc { buffer } => self.memory.alloc(*buffer),
            Stmt::If { cond, then, otherwise } => {
                let (yes, no) = self.differ(*cond, lanes, active)?;
                self.all(then, lanes, &yes)?;
                self.all(otherwise, lanes, &no)
            }
            Stmt::Check { cond, code } => match self.differ(*cond, lanes, active)?.1.is_empty() {
                true => Ok(()),
                false => Err(Stop::Check(*code)),
            },
        }
    }

    /// The active lanes where `cond` holds, and the others.
    fn differ(&self, cond: Scalar, lanes: &[Lane], active: &[usize]) -> Result<(Vec<usize>, Vec<usize>), Stop> {
        let (mut yes, mut no) = (vec![], vec![]);
        for &l in active {
            if self.value(cond, &lanes[l])? != 0 { yes.push(l) } else { no.push(l) }
        }
        Ok((yes, no))
    }

    fn uniform(&self, e: Expr, lanes: &[Lane], active: &[usize]) -> Result<i64, Stop> {
        let first = self.index(&lanes[active[0]], e)?;
        for &l in active {
            if self.index(&lanes[l], e)? != first {
                return Err(Stop::Internal(format!("the extent {e} differs between lanes")));
            }
        }
        Ok(first)
    }

    fn value(&self, s: Scalar, lane: &Lane) -> Result<u64, Stop> {
        let stop: RefCell<Option<Stop>> = RefCell::new(None);
        let note = |s: Stop| {
            stop.borrow_mut().get_or_insert(s);
        };
        let leaf = |e: Expr| {
            let value = self.leaf(lane, e);
            if value.is_none() {
                note(Stop::Internal(format!("{e} has no value")));
            }
            Some(value.unwrap_or(0))
        };
        let mut read = |n: u32, at: &[i64], d: DType| {
            self.memory.load(n, at, d).unwrap_or_else(|s| {
                note(s);
                0
            })
        };
        let local = |n: u32| {
            lane.locals.get(n as usize).copied().flatten().unwrap_or_else(|| {
                note(Stop::Internal(format!("local t{n} has no value")));
                0
            })
        };
        let value = eval::scalar(s, &leaf, &mut read, &local);
        match stop.into_inner() {
            Some(s) => Err(s),
            None => Ok(value),
        }
    }
}
