//! How a buffer is seen in C: as an array with the axes that it has in memory, where their sizes are known, else as a flat one.

use infc_ir::Expr;
use infc_kernel::loops::Buffer;

/// How elements are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// An array; its axes are these of the buffer, outermost first, and all but the outermost have these sizes.
    Nested {
        /// Axes of the buffer.
        axes: Vec<usize>,
        /// Sizes of the axes after the first.
        inner: Vec<i64>,
    },
    /// A pointer to the first element; indices are multiplied with strides.
    Flat,
}

/// The shape of a buffer.
pub fn shape(b: &Buffer) -> Shape {
    nested(b).map_or(Shape::Flat, |(axes, inner)| Shape::Nested { axes, inner })
}

fn nested(b: &Buffer) -> Option<(Vec<usize>, Vec<i64>)> {
    // An axis of one element has index 0, one of stride 0 does not move.
    let mut axes: Vec<(usize, i64)> = vec![];
    for (axis, (dim, stride)) in b.dims.iter().zip(&b.strides).enumerate() {
        if !dim.is(1) && !stride.is(0) {
            axes.push((axis, stride.known()?));
        }
    }
    axes.sort_by_key(|&(axis, stride)| (std::cmp::Reverse(stride), axis));
    if axes.last().is_some_and(|&(_, stride)| stride != 1) {
        return None;
    }
    let mut inner = vec![];
    for pair in axes.windows(2) {
        let ((_, outer), (axis, stride)) = (pair[0], pair[1]);
        let dim = b.dims[axis].known().filter(|&d| d > 0)?;
        if stride <= 0 || outer % stride != 0 || outer / stride < dim {
            return None;
        }
        inner.push(outer / stride);
    }
    Some((axes.into_iter().map(|a| a.0).collect(), inner))
}

/// `[4][8]`.
pub fn brackets(sizes: &[i64]) -> String {
    sizes.iter().map(|s| format!("[{s}]")).collect()
}

/// Sizes of all axes of a buffer of constant size, to declare it.
pub fn sizes(b: &Buffer, shape: &Shape) -> Option<Vec<i64>> {
    match shape {
        Shape::Nested { axes, inner } => {
            let Some(&first) = axes.first() else { return Some(vec![]) };
            Some(std::iter::once(b.dims[first].known()?.max(1)).chain(inner.iter().copied()).collect())
        }
        Shape::Flat => Some(vec![b.span().known()?.max(1)]),
    }
}

/// The offset of an element of a flat buffer.
pub fn offset(b: &Buffer, index: &[Expr]) -> Expr {
    index.iter().zip(&b.strides).fold(Expr::int(0), |sum, (&i, &s)| sum + i * s)
}

#[cfg(test)]
mod tests {
    use super::*;
    use infc_ir::DType;
    use infc_kernel::loops::{Access, Space};

    #[test]
    fn axes_stand_in_the_order_of_memory() {
        let check = |dims: &[Expr], strides: &[i64]| {
            let strides = strides.iter().map(|&s| Expr::int(s)).collect();
            let (space, access) = (Space::Global, Access::Read);
            shape(&Buffer { name: "x".into(), dtype: DType::F32, dims: dims.to_vec(), strides, space, access })
        };
        let (n, i) = (Expr::sym("n"), Expr::int);
        let nested = |axes: &[usize], inner: &[i64]| Shape::Nested { axes: axes.to_vec(), inner: inner.to_vec() };
        assert_eq!(check(&[n, i(4)], &[4, 1]), nested(&[0, 1], &[4]));
        assert_eq!(check(&[n, i(3), i(5), i(5)], &[75, 1, 15, 3]), nested(&[0, 2, 3, 1], &[5, 5, 3]));
        assert_eq!(check(&[n, i(1), i(28), i(28)], &[900, 1, 30, 1]), nested(&[0, 2, 3], &[30, 30]));
        assert_eq!(check(&[i(4), i(2)], &[4, 2]), Shape::Flat);
        assert_eq!(check(&[i(4), n], &[4, 1]), Shape::Flat);
        assert_eq!(check(&[], &[]), nested(&[], &[]));
    }
}
