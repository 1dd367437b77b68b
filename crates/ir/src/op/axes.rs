//! Axes that an operand names, where the operand may be data: whether an axis is named, and which element of another vector
//! belongs to it, are expressions of the operand's elements that are right for each value. Where the axes are known these fold to
//! constants, so operators need no second way for data.

use super::*;

/// The axes of a tensor that an operand names, each at most once.
pub(super) struct Named {
    /// From 0 where they are known, else as they are.
    each: Vec<Expr>,
    rank: usize,
}

/// 1 if `a` is `b`, else 0.
pub(super) fn same(a: Expr, b: Expr) -> Expr {
    Expr::int(1) - (a - b).max(b - a).max(Expr::int(0)).min(Expr::int(1))
}

impl Named {
    /// The axes in operand `i`, for a tensor of `rank`. What is wrong for certain is an error, the rest a condition.
    pub(super) fn operand(cx: &Ctx, i: usize, rank: usize) -> Result<Named, Fault> {
        Named::new(&cx.ints(i)?, rank)
    }

    /// These axes, counted from the end where they are negative.
    pub(super) fn new(axes: &[Expr], rank: usize) -> Result<Named, Fault> {
        let normal = |&a: &Expr| a.known().map_or(Ok(a), |a| normal_axis(a, rank).map(Expr::from));
        let each = axes.iter().map(normal).collect::<Result<Vec<_>, _>>()?;
        let repeated = each.iter().enumerate().any(|(i, a)| a.known().is_some() && each[..i].contains(a));
        if repeated {
            return Err(fault!("axes {axes:?} name one axis twice"));
        }
        let named = Named { each, rank };
        let count = (0..rank).fold(Expr::int(0), |n, a| n + named.has(a));
        let text = || format!("its {} axes must be different ones of {rank}, counted from 0 or from the end", axes.len());
        sizes::must_equal(count, named.each.len().into(), &text);
        Ok(named)
    }

    /// The axes from 0, if every one is known.
    pub(super) fn known(&self) -> Option<Vec<usize>> {
        self.each.iter().map(|a| Some(a.known()? as usize)).collect()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.each.len()
    }

    /// 1 if the axis that entry `k` names is `axis`, else 0.
    fn is(&self, k: usize, axis: usize) -> Expr {
        let a = self.each[k];
        match a.known() {
            Some(_) => same(a, axis.into()),
            None => same(a, axis.into()) + same(a + self.rank as i64, axis.into()),
        }
    }

    /// 1 if `axis` is named, else 0.
    pub(super) fn has(&self, axis: usize) -> Expr {
        (0..self.len()).fold(Expr::int(0), |n, k| n + self.is(k, axis)).min(Expr::int(1))
    }

    /// The element of `values` for the entry that names `axis`; `otherwise` if none does.
    pub(super) fn pick(&self, axis: usize, values: &[Expr], otherwise: Expr) -> Expr {
        let chosen = values.iter().take(self.len()).enumerate().fold(Expr::int(0), |sum, (k, &v)| sum + self.is(k, axis) * v);
        chosen + (Expr::int(1) - self.has(axis)) * otherwise
    }

    /// Where every axis that is not named goes when the others are left out: 1 if `axis` becomes axis `to` of what is left.
    pub(super) fn moves(&self, axis: usize, to: usize) -> Expr {
        let kept = |a: usize| Expr::int(1) - self.has(a);
        let place = (0..axis).fold(Expr::int(0), |n, a| n + kept(a));
        kept(axis) * same(place, to.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With variables for axes, every answer is right once the variables are known.
    #[test]
    fn open_axes_are_known_ones_later() {
        let rank = 3;
        for (a, b) in [(0, 1), (2, 0), (-1, 1), (-3, -1)] {
            let open = Named::new(&[Expr::datum("a"), Expr::datum("b")], rank).unwrap();
            let known = Named::new(&[Expr::int(a), Expr::int(b)], rank).unwrap();
            let value = |l: Expr| match () {
                () if l == Expr::datum("a") => Expr::int(a),
                () if l == Expr::datum("b") => Expr::int(b),
                () => l,
            };
            let values = [Expr::sym("x"), Expr::sym("y")];
            for axis in 0..rank {
                assert_eq!(open.has(axis).map(&value), known.has(axis));
                let pick = |n: &Named| n.pick(axis, &values, Expr::sym("z"));
                assert_eq!(pick(&open).map(&value), pick(&known), "axis {axis} of {a}, {b}");
                for to in 0..rank - 2 {
                    assert_eq!(open.moves(axis, to).map(&value), known.moves(axis, to));
                }
            }
        }
        assert!(Named::new(&[Expr::int(0), Expr::int(-3)], rank).is_err());
        assert!(Named::new(&[Expr::int(3)], rank).is_err());
    }
}
