//! Classical machine learning.

use crate::elementwise::rows;
use crate::kit::*;
use infc_ir::op::Attr;
use infc_ir::{DType, Tensor};

fn ml(name: &'static str) -> Case {
    op(name).domain("ai.onnx.ml")
}

const TRANSFORMS: &[&str] = &["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO"];
const UNIT: Fill = Fill::Real(-1.0, 1.0);

fn reals(r: &mut Random, n: usize) -> Vec<f32> {
    (0..n).map(|_| (2.0 * r.unit() - 1.0) as f32).collect()
}

fn rows_of(r: &mut Random, columns: usize) -> Tensor {
    let n = r.size(1, 20);
    r.tensor(DType::F32, &[n, columns], SMALL)
}

/// Trees of random form, as lists of nodes: ids, features, modes, values, children; and the leaves' ids.
struct Trees {
    lists: [Vec<i64>; 5],
    modes: Vec<String>,
    values: Vec<f32>,
    leaves: Vec<(i64, i64)>,
}

fn trees(r: &mut Random, features: usize) -> Trees {
    let mut t = Trees { lists: Default::default(), modes: vec![], values: vec![], leaves: vec![] };
    let mode = r.pick(&["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"]);
    for tree in 0..r.within(1, 3) {
        let depth = r.size(0, 3);
        let interior = (1usize << depth) - 1;
        for id in 0..(2 * interior + 1) {
            let leaf = id >= interior;
            let feature = r.within(0, features as i64 - 1);
            let [left, right] = if leaf { [0, 0] } else { [2 * id + 1, 2 * id + 2] };
            for (list, v) in t.lists.iter_mut().zip([tree, id as i64, feature, left as i64, right as i64]) {
                list.push(v);
            }
            t.modes.push(if leaf { "LEAF".to_owned() } else { mode.to_owned() });
            t.values.push(r.within(-3, 3) as f32);
            if leaf {
                t.leaves.push((tree, id as i64));
            }
        }
    }
    t
}

impl Trees {
    fn on(&self, case: Case) -> Case {
        let [tree, id, feature, yes, no] = &self.lists;
        let case = case.ints("nodes_treeids", tree).ints("nodes_nodeids", id).ints("nodes_featureids", feature);
        let case = case.ints("nodes_truenodeids", yes).ints("nodes_falsenodeids", no).floats("nodes_values", &self.values);
        case.set("nodes_modes", Attr::Strs(self.modes.clone()))
    }
    /// One vote at each leaf.
    fn votes(&self, r: &mut Random, case: Case, what: &str, count: usize) -> Case {
        let n = self.leaves.len();
        let (trees, ids): (Vec<i64>, Vec<i64>) = self.leaves.iter().copied().unzip();
        let targets: Vec<i64> = (0..n).map(|_| r.within(0, count as i64 - 1)).collect();
        let weights: Vec<f32> = (0..n).map(|_| r.within(-8, 8) as f32 / 4.0).collect();
        let case = case.ints(&format!("{what}_treeids"), &trees).ints(&format!("{what}_nodeids"), &ids);
        case.ints(&format!("{what}_ids"), &targets).floats(&format!("{what}_weights"), &weights)
    }
}

/// The newer form: interior nodes and leaves in lists of their own; one tree of two levels.
fn ensemble(r: &mut Random) -> Case {
    let features = r.size(1, 4);
    let mode = r.within(0, 5) as u8;
    let pick = |r: &mut Random| r.within(0, features as i64 - 1);
    let splits: Vec<f32> = (0..3).map(|_| r.within(-3, 3) as f32).collect();
    let case = ml("TreeEnsemble").ints("tree_roots", &[0]).int("n_targets", 2).int("aggregate_function", r.pick(&[1, 1, 2, 3]));
    let case = case
        .ints("nodes_featureids", &[pick(r), pick(r), pick(r)])
        .set("nodes_splits", Attr::Tensor(Tensor::from_vec([3], splits)));
    let case = case.set("nodes_modes", Attr::Tensor(Tensor::from_vec([3], vec![mode; 3])));
    let case = case.ints("nodes_truenodeids", &[1, 0, 2]).ints("nodes_trueleafs", &[0, 1, 1]);
    let case = case.ints("nodes_falsenodeids", &[2, 1, 3]).ints("nodes_falseleafs", &[0, 1, 1]);
    let targets: Vec<i64> = (0..4).map(|_| r.within(0, 1)).collect();
    let weights: Vec<f32> = (0..4).map(|_| r.within(-8, 8) as f32 / 4.0).collect();
    case.ints("leaf_targetids", &targets)
        .set("leaf_weights", Attr::Tensor(Tensor::from_vec([4], weights)))
        .of(rows_of(r, features))
}

fn svm(name: &'static str, r: &mut Random, features: usize) -> Case {
    let kernel = r.pick(&["LINEAR", "POLY", "RBF", "SIGMOID"]);
    let case = ml(name).str("kernel_type", kernel).floats("kernel_params", &[0.3, 0.2, 2.0]);
    let n = r.size(1, 9);
    case.of(r.tensor(DType::F32, &[n, features], UNIT)).scaled(64.0)
}

pub const ML: &[Row] = rows! {
    "ArrayFeatureExtractor" => |r| {
        let (n, c) = (r.size(1, 4), r.size(1, 6));
        let x = rows_of(r, c);
        let beyond = i64::from(r.chance(10));
        ml("ArrayFeatureExtractor").of(x).of(r.tensor(DType::I64, &[1, n], Fill::Within(0, c as i64 - 1 + beyond)))
    };
    "Binarizer" => |r| { let (d, dims) = (r.pick(&[DType::F32, DType::F64, DType::I32, DType::I64]), r.dims(1..=3)); ml("Binarizer").float("threshold", 0.5).of(r.tensor(d, &dims, SMALL)) };
    "FeatureVectorizer" => |r| {
        let (n, count) = (r.size(1, 4), r.size(1, 3));
        let widths: Vec<usize> = (0..count).map(|_| r.size(1, 4)).collect();
        let wanted: Vec<i64> = widths.iter().map(|&w| w as i64).collect();
        widths.iter().fold(ml("FeatureVectorizer").ints("inputdimensions", &wanted), |case, &w| case.of(r.tensor(DType::F32, &[n, w], SMALL)))
    };
    "Imputer" => |r| {
        let (n, c) = (r.size(1, 9), r.size(1, 5));
        let count = if r.chance(50) { 1 } else { c };
        if r.chance(40) {
            let (dtype, values) = (r.pick(&[DType::I32, DType::I64]), (0..count as i64).map(|i| 10 + i).collect::<Vec<_>>());
            let case = ml("Imputer").ints("imputed_value_int64s", &values).int("replaced_value_int64", r.within(-1, 1));
            return case.of(r.tensor(dtype, &[n, c], SMALL));
        }
        let values: Vec<f32> = (0..count).map(|i| 10.0 + i as f32).collect();
        let missing = r.pick(&[0.0, 1.0, f32::NAN]);
        ml("Imputer").floats("imputed_value_floats", &values).float("replaced_value_float", missing).of(r.tensor(DType::F32, &[n, c], Fill::Any))
    };
    "LinearClassifier" => |r| {
        let (c, classes) = (r.size(1, 6), r.size(2, 4));
        let labels: Vec<i64> = (0..classes as i64).map(|k| 10 * k).collect();
        let case = ml("LinearClassifier").ints("classlabels_ints", &labels).floats("coefficients", &reals(r, c * classes));
        let case = case.floats("intercepts", &reals(r, classes)).str("post_transform", r.pick(TRANSFORMS)).results(2);
        case.of(rows_of(r, c)).scaled(32.0)
    };
    "LinearRegressor" => |r| {
        let (c, targets) = (r.size(1, 6), r.size(1, 3));
        let case = ml("LinearRegressor").int("targets", targets as i64).floats("coefficients", &reals(r, c * targets));
        let case = case.floats("intercepts", &reals(r, targets)).str("post_transform", r.pick(TRANSFORMS));
        case.of(rows_of(r, c)).scaled(32.0)
    };
    "Normalizer" => |r| { let (c, norm) = (r.size(1, 9), r.pick(&["MAX", "L1", "L2"])); ml("Normalizer").str("norm", norm).of(rows_of(r, c)).ulps(8.0) };
    "OneHotEncoder" => |r| {
        let (dims, d) = (r.dims(1..=2), r.pick(&[DType::F32, DType::I64, DType::I32]));
        ml("OneHotEncoder").ints("cats_int64s", &[-1, 0, 2]).int("zeros", 1).of(r.tensor(d, &dims, SMALL))
    };
    "SVMClassifier" => |r| {
        let (c, vectors) = (r.size(1, 4), [r.size(1, 3), r.size(1, 3)]);
        let n = vectors[0] + vectors[1];
        let case = svm("SVMClassifier", r, c).ints("classlabels_ints", &[3, 7]).ints("vectors_per_class", &[vectors[0] as i64, vectors[1] as i64]);
        let case = case.floats("support_vectors", &reals(r, n * c)).floats("coefficients", &reals(r, n)).floats("rho", &reals(r, 1));
        case.str("post_transform", r.pick(&["NONE", "LOGISTIC"])).results(2)
    };
    "SVMRegressor" => |r| {
        let (c, n) = (r.size(1, 4), r.size(1, 4));
        let case = svm("SVMRegressor", r, c).int("n_supports", n as i64).floats("support_vectors", &reals(r, n * c));
        case.floats("coefficients", &reals(r, n)).floats("rho", &reals(r, 1)).int("one_class", r.within(0, 1))
    };
    "Scaler" => |r| {
        let c = r.size(1, 9);
        let n = if r.chance(50) { 1 } else { c };
        let case = ml("Scaler").floats("offset", &reals(r, n)).floats("scale", &reals(r, n));
        case.of(rows_of(r, c)).ulps(2.0)
    };
    "TreeEnsemble" => |r| ensemble(r);
    "TreeEnsembleClassifier" => |r| {
        let (c, classes) = (r.size(1, 5), r.size(2, 4));
        let t = trees(r, c);
        let labels: Vec<i64> = (0..classes as i64).map(|k| 5 + k).collect();
        let case = t.votes(r, t.on(ml("TreeEnsembleClassifier")), "class", classes).ints("classlabels_int64s", &labels);
        case.str("post_transform", r.pick(TRANSFORMS)).results(2).of(rows_of(r, c)).scaled(32.0)
    };
    "TreeEnsembleRegressor" => |r| {
        let (c, targets) = (r.size(1, 5), r.size(1, 3));
        let t = trees(r, c);
        let case = t.votes(r, t.on(ml("TreeEnsembleRegressor")), "target", targets).int("n_targets", targets as i64);
        let case = case.str("aggregate_function", r.pick(&["SUM", "AVERAGE", "MIN", "MAX"]));
        case.str("post_transform", r.pick(&["NONE", "LOGISTIC"])).of(rows_of(r, c)).scaled(32.0)
    };
};

#[test]
fn ml_family() {
    family("ml", ML);
}
