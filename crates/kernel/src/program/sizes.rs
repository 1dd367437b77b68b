//! Sizes of a program: expressions in postfix form, and the symbols in them.

use super::Emit;
use infc_artifact::program::{self as art, Size, SizeOp, Step, SymbolSource};
use infc_ir::Expr;
use infc_ir::expr::Node;
use std::collections::HashSet;

impl Emit<'_> {
    /// The postfix form of an expression; unknown symbols become symbols that a step sets.
    pub(super) fn size(&mut self, e: Expr) -> Size {
        let mut code = vec![];
        self.postfix(e, &mut code);
        Size(code)
    }

    pub(super) fn postfix(&mut self, e: Expr, code: &mut Vec<SizeOp>) {
        match e.node() {
            Node::Const(c) => code.push(SizeOp::Const(*c)),
            Node::Sym(s) => {
                let n = self.symbol(s, SymbolSource::Step);
                code.push(SizeOp::Symbol(n));
            }
            Node::Var(_) => unreachable!("a loop variable in a size"),
            Node::Sum { terms, constant } => {
                code.push(SizeOp::Const(*constant));
                for &(t, c) in terms {
                    self.postfix(t, code);
                    if c != 1 {
                        code.extend([SizeOp::Const(c), SizeOp::Mul]);
                    }
                    code.push(SizeOp::Add);
                }
            }
            Node::Product(factors) => {
                for (k, &f) in factors.iter().enumerate() {
                    self.postfix(f, code);
                    if k > 0 {
                        code.push(SizeOp::Mul);
                    }
                }
            }
            Node::Div(a, b) => self.postfix_two(*a, *b, SizeOp::Div, code),
            Node::Mod(a, b) => self.postfix_two(*a, *b, SizeOp::Mod, code),
            Node::Min(a, b) => self.postfix_two(*a, *b, SizeOp::Min, code),
            Node::Max(a, b) => self.postfix_two(*a, *b, SizeOp::Max, code),
        }
    }

    pub(super) fn postfix_two(&mut self, a: Expr, b: Expr, op: SizeOp, code: &mut Vec<SizeOp>) {
        self.postfix(a, code);
        self.postfix(b, code);
        code.push(op);
    }

    pub(super) fn symbol(&mut self, name: &'static str, source: SymbolSource) -> u32 {
        let next = self.symbols.len() as u32;
        let symbols = &mut self.out.program.symbols;
        *self.symbols.entry(name).or_insert_with(|| {
            symbols.push(art::Symbol { name: name.to_owned(), source });
            next
        })
    }

    /// Every symbol that the inputs do not tell is set by a step.
    pub(super) fn check_symbols(&mut self, steps: &[Step]) {
        fn set(steps: &[Step], out: &mut HashSet<u32>) {
            for s in steps {
                match s {
                    Step::Bind { symbol, .. } => drop(out.insert(*symbol)),
                    Step::If { then, otherwise, .. } => {
                        set(then, out);
                        set(otherwise, out);
                    }
                    Step::Loop { counter, body, .. } => {
                        out.insert(*counter);
                        set(body, out);
                    }
                    Step::Launch { .. }
                    | Step::Copy { .. }
                    | Step::Require { .. }
                    | Step::Host { .. }
                    | Step::HostLaunch { .. }
                    | Step::ToHost { .. }
                    | Step::ToDevice { .. } => {}
                }
            }
        }
        let mut known = HashSet::new();
        set(steps, &mut known);
        for (k, s) in self.out.program.symbols.clone().iter().enumerate() {
            if s.source == SymbolSource::Step && !known.contains(&(k as u32)) {
                let help = "give the model fixed dims with --dim, or simplify what computes this size";
                self.problem(
                    "the model",
                    format!("the size '{}' depends on data in a way that compiled code does not follow yet", s.name),
                    help,
                );
            }
        }
    }
}
