//! What the tests share: random inputs for a model, and comparison of results by class.

use infc_ir::expr::Node as ExprNode;
use infc_ir::graph::Graph;
use infc_ir::{DType, Tensor};
use infc_passes::Class;
use std::collections::HashMap;

struct Random(u64);
impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }
}

/// Inputs for a model: symbols take small sizes, elements are small numbers.
pub fn inputs(g: &Graph, sizes: &mut HashMap<String, i64>, small: bool, seed: u64) -> Vec<Tensor> {
    let mut random = Random(seed);
    let tensor = |&v| {
        let ty = g.ty(v).as_tensor().expect("inputs are tensors");
        let mut dims = vec![];
        for d in &ty.dims {
            let size = d.eval(&|leaf| match leaf.node() {
                ExprNode::Sym(s) => sizes.get(*s).copied(),
                _ => None,
            });
            dims.push(size.unwrap_or_else(|| {
                let size = 2 + sizes.len() as i64;
                sizes.insert(d.to_string(), size);
                size
            }) as usize);
        }
        let values = (0..dims.iter().product::<usize>()).map(|_| match ty.dtype {
            d if d.is_float() && small => (random.next() as f64 % 7.0 - 3.0).to_bits(),
            d if d.is_float() => (random.next() as f64 / f64::from(1u32 << 29) - 2.0).to_bits(),
            DType::Bool => random.next() % 2,
            DType::I64 | DType::I32 => random.next() % 3,
            d => infc_ir::eval::wrap_int(d, random.next() as i64) as u64,
        });
        let values: Vec<u64> = values.collect();
        Tensor::from_values(ty.dtype, dims, values)
    };
    g.inputs().iter().map(tensor).collect()
}

/// Do two results agree as the class of the passes promises?
pub fn agree(class: Class, a: &Tensor, b: &Tensor) -> Result<(), String> {
    if (a.dtype, &a.dims) != (b.dtype, &b.dims) {
        return Err(format!("{}{:?} became {}{:?}", a.dtype, a.dims, b.dtype, b.dims));
    }
    if a.dtype == DType::String {
        return if a == b { Ok(()) } else { Err(format!("{:?} became {:?}", a.strings(), b.strings())) };
    }
    let largest = (0..a.len()).map(|i| a.float(i).abs()).filter(|x| x.is_finite()).fold(0.0, f64::max);
    for i in 0..a.len() {
        let (x, y) = (a.float(i), b.float(i));
        let close = match class {
            Class::Exact => x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan(),
            Class::SameOrder => x == y || x.is_nan() && y.is_nan() || (x - y).abs() <= 1e-6 * x.abs().max(1e-3),
            Class::Reassociated => x == y || x.is_nan() && y.is_nan() || (x - y).abs() <= 1e-5 * x.abs().max(largest),
            Class::OneRounding => x == y || x.is_nan() && y.is_nan() || (x - y).abs() <= 1.0,
        };
        if !close {
            return Err(format!("element {i}: {x} became {y}"));
        }
    }
    Ok(())
}
