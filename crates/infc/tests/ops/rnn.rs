//! Recurrent layers.

use crate::elementwise::rows;
use crate::kit::*;
use infc_ir::op::Attr;
use infc_ir::{DType, Tensor};

const UNIT: Fill = Fill::Real(-1.0, 1.0);

/// A layer with `gates` gates and `states` states; operands after the weights are there or not.
fn layer(name: &'static str, r: &mut Random, gates: usize, states: usize) -> Case {
    let (t, n, input, hidden) = (r.size(1, 6), r.size(1, 3), r.size(1, 5), r.size(1, 9));
    let (direction, d) = r.pick(&[("forward", 1), ("reverse", 1), ("bidirectional", 2)]);
    let layout = r.within(0, 1);
    let dtype = r.pick(&[DType::F32, DType::F32, DType::F32, DType::F64]);
    let (x, start) = if layout == 0 { ([t, n, input], [d, n, hidden]) } else { ([n, t, input], [n, d, hidden]) };
    let case = op(name).str("direction", direction).int("layout", layout).int("hidden_size", hidden as i64).results(1 + states);
    let case = if r.chance(20) { case.float("clip", 0.5) } else { case };
    let case = activations(case, r, gates, d);
    let case = case.of(r.tensor(dtype, &x, UNIT)).of(r.tensor(dtype, &[d, gates * hidden, input], UNIT));
    let mut case = case.of(r.tensor(dtype, &[d, gates * hidden, hidden], UNIT));
    let lens = Tensor::from_vec([n], (0..n).map(|_| r.within(1, t as i64) as i32).collect::<Vec<i32>>());
    let mut rest = vec![Some(r.tensor(dtype, &[d, 2 * gates * hidden], UNIT)), Some(lens)];
    rest.extend((0..states).map(|_| Some(r.tensor(dtype, &start, UNIT))));
    if gates == 4 {
        rest.push(Some(r.tensor(dtype, &[d, 3 * hidden], UNIT)));
    }
    for operand in rest {
        case = match operand {
            Some(t) if r.chance(50) => case.data(t),
            _ => case.none(),
        };
    }
    case.scaled(64.0)
}

/// Sometimes other activations than the usual ones.
fn activations(case: Case, r: &mut Random, gates: usize, directions: usize) -> Case {
    if r.chance(60) {
        return case;
    }
    let of_layer = match gates {
        4 => 3,
        3 => 2,
        _ => 1,
    };
    let names: Vec<String> =
        (0..of_layer * directions).map(|_| r.pick(&["Sigmoid", "Tanh", "Relu", "Softsign"]).to_owned()).collect();
    case.set("activations", Attr::Strs(names))
}

pub const RNN: &[Row] = rows! {
    "GRU" => |r| { let after = r.within(0, 1); layer("GRU", r, 3, 1).int("linear_before_reset", after) };
    "LSTM" => |r| { let coupled = r.within(0, 1); layer("LSTM", r, 4, 2).int("input_forget", coupled) };
    "RNN" => |r| layer("RNN", r, 1, 1);
};

#[test]
fn rnn() {
    family("rnn", RNN);
}
