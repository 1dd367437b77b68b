//! Ensembles of decision trees.
//!
//! All three operators become one form: [`Forest`], a table of nodes. `TreeLeaves` walks all trees for all rows, as many steps as
//! the deepest tree has levels; then the votes at the leaves are looked up and combined.

use super::*;

/// Comparison of a node, by ONNX's number in `TreeEnsemble`.
const MODES: [&str; 6] = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"];
const EQUAL: u8 = 4;
/// `x` is in a set of values.
const MEMBER: u8 = 6;

/// Trees as tables. Interior nodes come first, then leaves.
#[derive(Clone, Debug, Default, PartialEq)]
struct Forest {
    /// Of interior nodes: feature, comparison, threshold, does NaN count as true?
    features: Vec<i64>,
    modes: Vec<u8>,
    splits: Vec<f64>,
    missing: Vec<bool>,
    /// Of interior nodes: where to go, false and true.
    children: Vec<[usize; 2]>,
    /// Votes of each leaf: target and weight.
    leaves: Vec<Vec<(usize, f64)>>,
    roots: Vec<usize>,
    depth: usize,
    /// Thresholds and weights are f64.
    double: bool,
}

impl Forest {
    fn interior(&self) -> usize {
        self.features.len()
    }

    /// Sets the depth; an error if a node is its own descendant.
    fn measure(mut self) -> Result<Forest, Fault> {
        // 0: not seen, 1: on the path, otherwise 2 + height
        let mut state = vec![0usize; self.interior()];
        for &root in &self.roots {
            let mut path = vec![root];
            while let Some(&node) = path.last() {
                if node >= self.interior() || state[node] > 1 {
                    path.pop();
                    continue;
                }
                let open = state[node] == 0;
                state[node] = 1;
                let height = |n: usize| if n < self.interior() { state[n] } else { 2 };
                let [a, b] = self.children[node];
                if open {
                    if let Some(c) = [a, b].into_iter().find(|&c| height(c) == 1) {
                        return Err(fault!("tree node {c} is its own descendant"));
                    }
                    path.extend([a, b]);
                } else {
                    state[node] = 1 + height(a).max(height(b));
                    path.pop();
                }
            }
        }
        let height = |&root: &usize| if root < self.interior() { state[root] - 2 } else { 0 };
        self.depth = self.roots.iter().map(height).max().unwrap_or(0);
        Ok(self)
    }

    /// The leaf of each row in each tree, `[N, T]`.
    fn walk(&self, b: &mut Builder, x: Value) -> Result<Value, Fault> {
        let total = self.interior() + self.leaves.len();
        let dtype = if self.double { DType::F64 } else { DType::F32 };
        let pad = |v: &[i64]| Tensor::from_ints(&v.iter().copied().chain(vec![0; self.leaves.len()]).collect::<Vec<_>>());
        let splits = self.splits.iter().copied().chain(vec![0.0; self.leaves.len()]);
        // A leaf leads to itself.
        let children = self.children.iter().flatten().copied().chain((self.interior()..total).flat_map(|n| [n, n]));
        let children: Vec<i64> = children.map(|n| n as i64).collect();
        let roots: Vec<i64> = self.roots.iter().map(|&n| n as i64).collect();
        let uniform = self.modes.windows(2).all(|w| w[0] == w[1]);
        let modes = self.modes.iter().copied().chain(vec![0; self.leaves.len()]).collect::<Vec<u8>>();
        let missing = self.missing.iter().copied().chain(vec![false; self.leaves.len()]).collect::<Vec<bool>>();
        let tables = [
            Some(pad(&self.features)),
            Some(Tensor::from_values(dtype, [total], splits.map(f64::to_bits))),
            Some(Tensor::from_vec([total, 2], children)),
            Some(Tensor::from_ints(&roots)),
            (!uniform).then(|| Tensor::from_vec([total], modes)),
            missing.contains(&true).then(|| Tensor::from_bools([total], &missing)),
        ];
        let mode = if uniform { self.modes.first().copied().map_or(0, i64::from) } else { -1 };
        let op = TreeLeaves { depth: self.depth as i64, interior: self.interior() as i64, mode };
        let operands: Vec<_> = [Some(x)].into_iter().chain(tables.map(|t| t.map(|t| b.constant(t)))).collect();
        Ok(b.node(op, &operands, vec![], 1)?[0])
    }

    /// Votes of all trees for `targets` targets, `[N, targets]`, combined.
    fn votes(&self, b: &mut Builder, x: Value, targets: usize, combine: Aggregate) -> Result<Value, Fault> {
        let dtype = if self.double { DType::F64 } else { DType::F32 };
        let none = match combine {
            Aggregate::Sum | Aggregate::Average => 0.0,
            Aggregate::Min => f64::INFINITY,
            Aggregate::Max => f64::NEG_INFINITY,
        };
        let mut table = vec![none; self.leaves.len() * targets];
        for (leaf, votes) in self.leaves.iter().enumerate() {
            for &(target, weight) in votes {
                let cell = &mut table[leaf * targets + target];
                *cell = match combine {
                    Aggregate::Sum | Aggregate::Average => *cell + weight,
                    Aggregate::Min => cell.min(weight),
                    Aggregate::Max => cell.max(weight),
                };
            }
        }
        let bits = table.iter().map(|&v| crate::eval::round_float(dtype, v).to_bits());
        let table = b.constant(Tensor::from_values(dtype, [self.leaves.len(), targets], bits));
        let leaves = self.walk(b, x)?;
        let each = b.op(Gather { axis: 0 }, &[table, leaves])?;
        let axes = b.ints(&[1]);
        let (keepdims, noop_with_empty_axes) = (false, false);
        match combine {
            Aggregate::Sum => b.op(ReduceSum { keepdims, noop_with_empty_axes }, &[each, axes]),
            Aggregate::Average => {
                let sum = b.op(ReduceSum { keepdims, noop_with_empty_axes }, &[each, axes])?;
                let trees = b.number(dtype, self.roots.len() as f64);
                b.op(Div {}, &[sum, trees])
            }
            Aggregate::Min | Aggregate::Max => {
                let best = match combine {
                    Aggregate::Min => b.op(ReduceMin { keepdims, noop_with_empty_axes }, &[each, axes])?,
                    _ => b.op(ReduceMax { keepdims, noop_with_empty_axes }, &[each, axes])?,
                };
                // A target without votes has 0.
                let (empty, zero) = (b.op(IsInf { detect_negative: 1, detect_positive: 1 }, &[best])?, b.number(dtype, 0.0));
                b.op(Where {}, &[empty, zero, best])
            }
        }
    }
}

/// How votes for a target are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aggregate {
    Average,
    Sum,
    Min,
    Max,
}

/// The attributes that the classifier and the regressor share.
struct Classic<'a> {
    trees: &'a [i64],
    ids: &'a [i64],
    features: &'a [i64],
    modes: &'a [String],
    values: Vec<f64>,
    yes: &'a [i64],
    no: &'a [i64],
    missing: &'a [i64],
    /// Of votes: tree, node, target, weight.
    vote_trees: &'a [i64],
    vote_ids: &'a [i64],
    targets: &'a [i64],
    weights: Vec<f64>,
    double: bool,
}

/// Floats given as a list or as a tensor.
fn numbers(list: &[f32], tensor: &Option<Tensor>) -> Vec<f64> {
    match tensor {
        Some(t) if t.dtype.is_float() => (0..t.len()).map(|i| t.float(i)).collect(),
        _ => list.iter().map(|&v| f64::from(v)).collect(),
    }
}

impl Classic<'_> {
    /// The forest, for `targets` targets.
    fn forest(&self, targets: usize) -> Result<Forest, Fault> {
        let n = self.trees.len();
        let lengths = [self.ids.len(), self.features.len(), self.modes.len(), self.values.len(), self.yes.len(), self.no.len()];
        if lengths.iter().any(|&l| l != n) || !(self.missing.is_empty() || self.missing.len() == n) {
            return Err(fault!("the lists nodes_... differ in length"));
        }
        let votes = self.vote_trees.len();
        if [self.vote_ids.len(), self.targets.len(), self.weights.len()].iter().any(|&l| l != votes) {
            return Err(fault!("the lists of votes differ in length"));
        }
        // Places in the table: interior nodes first, then leaves.
        let is_leaf = |i: usize| self.modes[i] == "LEAF";
        let interior = (0..n).filter(|&i| !is_leaf(i)).count();
        let (mut inner, mut outer) = (0..interior, interior..n);
        let mut place = std::collections::HashMap::new();
        for i in 0..n {
            let at = if is_leaf(i) { outer.next() } else { inner.next() };
            if place.insert((self.trees[i], self.ids[i]), at.unwrap_or(0)).is_some() {
                return Err(fault!("tree {} has two nodes {}", self.trees[i], self.ids[i]));
            }
        }
        let find = |tree: i64, id: i64| place.get(&(tree, id)).copied().ok_or_else(|| fault!("tree {tree} has no node {id}"));
        let mut f = Forest { leaves: vec![vec![]; n - interior], double: self.double, ..Forest::default() };
        let mut is_child = vec![false; n];
        for i in (0..n).filter(|&i| !is_leaf(i)) {
            let mode = MODES.iter().position(|m| *m == self.modes[i]);
            f.modes.push(mode.ok_or_else(|| fault!("node mode '{}' is not known", self.modes[i]))? as u8);
            f.features.push(self.features[i]);
            f.splits.push(self.values[i]);
            f.missing.push(self.missing.get(i).is_some_and(|&m| m != 0));
            let children = [find(self.trees[i], self.no[i])?, find(self.trees[i], self.yes[i])?];
            children.iter().for_each(|&c| is_child[c] = true);
            f.children.push(children);
        }
        let mut seen = std::collections::HashSet::new();
        for i in 0..n {
            let at = find(self.trees[i], self.ids[i])?;
            if !is_child[at] {
                if !seen.insert(self.trees[i]) {
                    return Err(fault!("tree {} has more than one root", self.trees[i]));
                }
                f.roots.push(at);
            }
        }
        for k in 0..votes {
            let at = find(self.vote_trees[k], self.vote_ids[k])?;
            let target = usize::try_from(self.targets[k]).ok().filter(|&t| t < targets);
            let target = target.ok_or_else(|| fault!("a vote is for {}, there are {targets} targets", self.targets[k]))?;
            // Votes at interior nodes are never reached.
            if let Some(leaf) = at.checked_sub(interior) {
                f.leaves[leaf].push((target, self.weights[k]));
            }
        }
        f.measure()
    }
}

/// Checks the features of a forest against the row length.
fn check_features(f: &Forest, columns: Expr) -> Result<(), Fault> {
    let known = columns.known().unwrap_or(i64::MAX);
    match f.features.iter().find(|&&v| v < 0 || v >= known) {
        Some(v) => Err(fault!("a node looks at feature {v}, rows have {columns}")),
        None => Ok(()),
    }
}

impl TreeEnsembleRegressor {
    fn forest(&self) -> Result<(Forest, usize), Fault> {
        let given = self.target_ids.iter().max().map_or(1, |m| m + 1);
        let targets = usize::try_from(self.n_targets.unwrap_or(given)).map_err(|_| fault!("n_targets is negative"))?;
        let classic = Classic {
            trees: &self.nodes_treeids,
            ids: &self.nodes_nodeids,
            features: &self.nodes_featureids,
            modes: &self.nodes_modes,
            values: numbers(&self.nodes_values, &self.nodes_values_as_tensor),
            yes: &self.nodes_truenodeids,
            no: &self.nodes_falsenodeids,
            missing: &self.nodes_missing_value_tracks_true,
            vote_trees: &self.target_treeids,
            vote_ids: &self.target_nodeids,
            targets: &self.target_ids,
            weights: numbers(&self.target_weights, &self.target_weights_as_tensor),
            double: self.nodes_values_as_tensor.is_some(),
        };
        Ok((classic.forest(targets)?, targets))
    }
    fn aggregate(&self) -> Result<Aggregate, Fault> {
        Ok(match &*self.aggregate_function {
            "SUM" => Aggregate::Sum,
            "AVERAGE" => Aggregate::Average,
            "MIN" => Aggregate::Min,
            "MAX" => Aggregate::Max,
            name => return Err(fault!("aggregate_function '{name}' is not known")),
        })
    }
}

/// Base values added to scores `[N, targets]`; one value counts for all.
fn add_base(b: &mut Builder, scores: Value, base: &[f64]) -> Result<Value, Fault> {
    if base.is_empty() {
        return Ok(scores);
    }
    let dtype = b.tensor(scores)?.dtype;
    let bits = base.iter().map(|&v| crate::eval::round_float(dtype, v).to_bits());
    let base = b.constant(Tensor::from_values(dtype, [base.len()], bits));
    b.op(Add {}, &[scores, base])
}

impl OpDef for TreeEnsembleRegressor {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let [n, columns] = rows(cx)?;
        let (forest, targets) = self.forest()?;
        check_features(&forest, columns)?;
        self.aggregate()?;
        PostTransform::parse(&self.post_transform)?;
        let base = numbers(&self.base_values, &self.base_values_as_tensor).len();
        if base != 0 && base != targets {
            return Err(fault!("{base} base values for {targets} targets"));
        }
        Ok(vec![Fact::tensor(DType::F32, [n, targets.into()])])
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let (forest, targets) = self.forest()?;
        let (aggregate, post) = (self.aggregate()?, PostTransform::parse(&self.post_transform)?);
        let base = numbers(&self.base_values, &self.base_values_as_tensor);
        Ok(Meaning::decompose(move |b, inputs| {
            let x = inputs.first().copied().flatten().ok_or_else(|| fault!("operand 0 is missing"))?;
            let scores = forest.votes(b, x, targets, aggregate)?;
            let scores = add_base(b, scores, &base)?;
            let scores = cast(b, scores, DType::F32)?;
            Ok(vec![post.apply_scores(b, scores, targets)?])
        }))
    }
}

impl TreeEnsembleClassifier {
    fn labels(&self) -> Result<Labels, Fault> {
        Labels::new(&self.classlabels_int64s, &self.classlabels_strings)
    }
    fn forest(&self) -> Result<Forest, Fault> {
        let classic = Classic {
            trees: &self.nodes_treeids,
            ids: &self.nodes_nodeids,
            features: &self.nodes_featureids,
            modes: &self.nodes_modes,
            values: numbers(&self.nodes_values, &self.nodes_values_as_tensor),
            yes: &self.nodes_truenodeids,
            no: &self.nodes_falsenodeids,
            missing: &self.nodes_missing_value_tracks_true,
            vote_trees: &self.class_treeids,
            vote_ids: &self.class_nodeids,
            targets: &self.class_ids,
            weights: numbers(&self.class_weights, &self.class_weights_as_tensor),
            double: self.nodes_values_as_tensor.is_some(),
        };
        classic.forest(self.labels()?.count())
    }
}

impl OpDef for TreeEnsembleClassifier {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let [n, columns] = rows(cx)?;
        check_features(&self.forest()?, columns)?;
        PostTransform::parse(&self.post_transform)?;
        let labels = self.labels()?;
        let base = numbers(&self.base_values, &self.base_values_as_tensor).len();
        if base > labels.count() {
            return Err(fault!("{base} base values for {} classes", labels.count()));
        }
        Ok(vec![Fact::tensor(labels.0.dtype, [n]), Fact::tensor(DType::F32, [n, labels.count().into()])])
    }
    fn meaning(&self, _: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let (forest, labels, post) = (self.forest()?, self.labels()?, PostTransform::parse(&self.post_transform)?);
        let base = numbers(&self.base_values, &self.base_values_as_tensor);
        let gets = |class: i64| self.class_ids.contains(&class);
        let weights = numbers(&self.class_weights, &self.class_weights_as_tensor);
        let binary = Binary2 { votes: [gets(0), gets(1)], positive: weights.iter().all(|&w| w >= 0.0), base: base.clone(), post };
        let classes = labels.count();
        Ok(Meaning::decompose(move |b, inputs| {
            let x = inputs.first().copied().flatten().ok_or_else(|| fault!("operand 0 is missing"))?;
            let scores = forest.votes(b, x, classes, Aggregate::Sum)?;
            if classes == 2 {
                return binary.finish(b, scores, &labels);
            }
            let scores = add_base(b, scores, &base)?;
            let best = b.op(ArgMax { axis: 1, keepdims: false, select_last_index: false }, &[scores])?;
            let label = labels.pick(b, best)?;
            let scores = cast(b, scores, DType::F32)?;
            Ok(vec![label, post.apply_scores(b, scores, classes)?])
        }))
    }
}

/// Two classes, by ONNX Runtime's rules, which differ from those of more classes: the score of the second class alone decides,
/// or that of the first if only it gets votes.
struct Binary2 {
    /// Does a class get votes?
    votes: [bool; 2],
    /// No weight is negative: a single score is a probability, otherwise a margin.
    positive: bool,
    base: Vec<f64>,
    post: PostTransform,
}

impl Binary2 {
    /// Label and scores from the sums of votes `[N, 2]`.
    fn finish(&self, b: &mut Builder, sums: Value, labels: &Labels) -> Result<Vec<Value>, Fault> {
        let dtype = b.tensor(sums)?.dtype;
        let columns = b.node(Split { axis: 1, num_outputs: Some(2) }, &[Some(sums)], vec![], 2)?;
        let moved = |b: &mut Builder, v: Value, by: f64| {
            let by = b.number(dtype, by);
            b.op(Add {}, &[v, by])
        };
        let zero = b.op(Sub {}, &[columns[0], columns[0]])?;
        // The scores shown, first and second class; `None` where only one score counts.
        let (first, second) = match (&self.base[..], self.votes) {
            ([_, base], [first, true]) => {
                let second = moved(b, columns[0], *base)?;
                let opposite = b.op(Neg {}, &[second])?;
                (if first { opposite } else { zero }, Some(second))
            }
            ([base, _], [_, false]) => (moved(b, columns[0], *base)?, Some(zero)),
            ([base], [true, true]) => (moved(b, columns[0], *base)?, Some(columns[1])),
            ([base], [_, false]) => (moved(b, columns[0], *base)?, None),
            (_, [_, true]) => (columns[0], Some(columns[1])),
            (_, [_, false]) => (columns[0], None),
        };
        let deciding = second.filter(|_| self.votes[1]).unwrap_or(first);
        let one_sided = self.votes != [true, true];
        let limit = b.number(dtype, if one_sided && self.positive { 0.5 } else { 0.0 });
        let wins = b.op(Greater {}, &[deciding, limit])?;
        let axes = b.ints(&[1]);
        let index = b.op(Squeeze {}, &[wins, axes])?;
        let index = cast(b, index, DType::I64)?;
        let label = labels.pick(b, index)?;
        let first = cast(b, first, DType::F32)?;
        let Some(second) = second else {
            return Ok(vec![label, self.from_one(b, first)?]);
        };
        let second = cast(b, second, DType::F32)?;
        let both = b.op(Concat { axis: 1 }, &[first, second])?;
        Ok(vec![label, self.post.apply(b, both)?])
    }

    /// Both scores from the only one there is.
    fn from_one(&self, b: &mut Builder, score: Value) -> Result<Value, Fault> {
        let other = if self.positive && self.post != PostTransform::Logistic {
            let one = b.number(DType::F32, 1.0);
            b.op(Sub {}, &[one, score])?
        } else {
            b.op(Neg {}, &[score])?
        };
        let both = b.op(Concat { axis: 1 }, &[other, score])?;
        if self.post == PostTransform::Logistic { self.post.apply(b, both) } else { Ok(both) }
    }
}

impl TreeEnsemble {
    fn forest(&self) -> Result<(Forest, usize), Fault> {
        let n = self.nodes_featureids.len();
        let lists = [&self.nodes_falseleafs, &self.nodes_falsenodeids, &self.nodes_trueleafs, &self.nodes_truenodeids];
        let sized = lists.iter().all(|l| l.len() == n) && self.nodes_modes.len() == n && self.nodes_splits.len() == n;
        if !sized || !(self.nodes_missing_value_tracks_true.is_empty() || self.nodes_missing_value_tracks_true.len() == n) {
            return Err(fault!("the lists nodes_... differ in length"));
        }
        if self.leaf_targetids.len() != self.leaf_weights.len() || !self.leaf_weights.dtype.is_float() {
            return Err(fault!("the lists leaf_... differ in length"));
        }
        let given = self.leaf_targetids.iter().max().map_or(1, |m| m + 1);
        let targets = usize::try_from(self.n_targets.unwrap_or(given)).map_err(|_| fault!("n_targets is negative"))?;
        let sets = self.members()?;
        // A test of membership in a set of several values is a chain of equalities.
        let members = |i: usize| sets.get(&i).map_or(&[][..], |s| &s[..]);
        let extra: usize = (0..n).map(|i| members(i).len().saturating_sub(1)).sum();
        let interior = n + extra;
        let target = |id: i64, leaf: i64| {
            let (count, from) = if leaf != 0 { (self.leaf_targetids.len(), interior) } else { (n, 0) };
            let at = usize::try_from(id).ok().filter(|&at| at < count);
            at.map(|at| at + from).ok_or_else(|| fault!("a branch leads to {id}, which does not exist"))
        };
        let mut f = Forest { double: self.nodes_splits.dtype == DType::F64, ..Forest::default() };
        let mut chained = vec![];
        for i in 0..n {
            let no = target(self.nodes_falsenodeids[i], self.nodes_falseleafs[i])?;
            let yes = target(self.nodes_truenodeids[i], self.nodes_trueleafs[i])?;
            let mode = self.nodes_modes.value(i) as u8;
            let missing = self.nodes_missing_value_tracks_true.get(i).is_some_and(|&m| m != 0);
            f.features.push(self.nodes_featureids[i]);
            f.missing.push(missing);
            match members(i) {
                _ if mode < MEMBER => {
                    f.modes.push(mode);
                    f.splits.push(self.nodes_splits.float(i));
                    f.children.push([no, yes]);
                }
                [first, rest @ ..] if mode == MEMBER => {
                    f.modes.push(EQUAL);
                    f.splits.push(*first);
                    let next = |k: usize| if k < rest.len() { n + chained.len() + k } else { no };
                    f.children.push([next(0), yes]);
                    let links: Vec<_> = rest
                        .iter()
                        .enumerate()
                        .map(|(k, &v)| (self.nodes_featureids[i], missing, v, [next(k + 1), yes]))
                        .collect();
                    chained.extend(links);
                }
                _ => return Err(fault!("node {i} has mode {mode} without members, or of no known number")),
            }
        }
        for (feature, missing, split, children) in chained {
            f.features.push(feature);
            f.missing.push(missing);
            f.modes.push(EQUAL);
            f.splits.push(split);
            f.children.push(children);
        }
        for (k, &t) in self.leaf_targetids.iter().enumerate() {
            let t = usize::try_from(t).ok().filter(|&t| t < targets).ok_or_else(|| fault!("leaf {k} is for target {t}"))?;
            f.leaves.push(vec![(t, self.leaf_weights.float(k))]);
        }
        for &root in &self.tree_roots {
            f.roots.push(target(root, 0)?);
        }
        Ok((f.measure()?, targets))
    }

    /// The sets of the membership nodes, which stand one after another with NaN between them.
    fn members(&self) -> Result<std::collections::HashMap<usize, Vec<f64>>, Fault> {
        let nodes: Vec<usize> = (0..self.nodes_modes.len()).filter(|&i| self.nodes_modes.value(i) == u64::from(MEMBER)).collect();
        let Some(values) = self.membership_values.as_ref().filter(|t| t.dtype.is_float()) else {
            return Ok(Default::default());
        };
        let values: Vec<f64> = (0..values.len()).map(|i| values.float(i)).collect();
        let sets: Vec<Vec<f64>> = values.split(|v| v.is_nan()).filter(|s| !s.is_empty()).map(<[f64]>::to_vec).collect();
        if sets.len() != nodes.len() {
            return Err(fault!("{} nodes test membership, but there are {} sets", nodes.len(), sets.len()));
        }
        Ok(nodes.into_iter().zip(sets).collect())
    }

    fn aggregate(&self) -> Result<Aggregate, Fault> {
        let all = [Aggregate::Average, Aggregate::Sum, Aggregate::Min, Aggregate::Max];
        let found = usize::try_from(self.aggregate_function).ok().and_then(|i| all.get(i).copied());
        found.ok_or_else(|| fault!("aggregate_function {} is not known", self.aggregate_function))
    }
    fn post(&self) -> Result<PostTransform, Fault> {
        use PostTransform::*;
        let found = usize::try_from(self.post_transform).ok();
        let found = found.and_then(|i| [None, Softmax, Logistic, SoftmaxZero, Probit].get(i).copied());
        found.ok_or_else(|| fault!("post_transform {} is not known", self.post_transform))
    }
}

impl OpDef for TreeEnsemble {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let [n, columns] = rows(cx)?;
        let (forest, targets) = self.forest()?;
        check_features(&forest, columns)?;
        self.aggregate()?;
        self.post()?;
        Ok(vec![Fact::tensor(cx.dtype(0)?, [n, targets.into()])])
    }
    fn meaning(&self, cx: &Ctx, _: &[Type]) -> Result<Meaning, Fault> {
        let (forest, targets) = self.forest()?;
        let (aggregate, post, dtype) = (self.aggregate()?, self.post()?, cx.dtype(0)?);
        Ok(Meaning::decompose(move |b, inputs| {
            let x = inputs.first().copied().flatten().ok_or_else(|| fault!("operand 0 is missing"))?;
            let scores = forest.votes(b, x, targets, aggregate)?;
            let scores = cast(b, scores, dtype)?;
            Ok(vec![post.apply_scores(b, scores, targets)?])
        }))
    }
}

/// Operands: rows `[N, F]`; per node (interior first, then leaves) feature, threshold, next node if false and if true; roots; then,
/// if they differ, comparisons by number, and whether NaN counts as true. One step for each level.
impl OpDef for TreeLeaves {
    fn infer(&self, cx: &Ctx) -> Result<Vec<Fact>, Fault> {
        let [n, _] = rows(cx)?;
        let dtypes = [DType::I64, cx.dtype(2)?, DType::I64, DType::I64, DType::U8, DType::Bool];
        for (i, want) in (1..cx.inputs.len()).zip(dtypes) {
            if cx.has(i) && cx.dtype(i)? != want {
                return Err(fault!("operand {i} is {}, it must be {want}", cx.tensor(i)?));
            }
        }
        if !(0..MEMBER.into()).contains(&self.mode) && !cx.has(5) {
            return Err(fault!("comparison {} is not known", self.mode));
        }
        match cx.dims(4)? {
            &[trees] => Ok(vec![Fact::tensor(DType::I64, [n, trees])]),
            _ => Err(fault!("the roots are {}, they must have rank 1", cx.tensor(4)?)),
        }
    }
    fn meaning(&self, cx: &Ctx, outs: &[Type]) -> Result<Meaning, Fault> {
        let (x, out) = (cx.tensor(0)?, Ctx::out(outs, 0)?);
        let splits = cx.dtype(2)?;
        let wide = if x.dtype == DType::F64 { DType::F64 } else { splits };
        let first = cx.inputs.len();
        let mut steps = vec![];
        for level in 0..self.depth.max(1) as usize {
            let c = Compute::map(&out.dims, |axes| {
                let node = match level {
                    0 => Scalar::read_at(DType::I64, 4, &axes[1..]),
                    _ => Scalar::read_at(DType::I64, first + level - 1, axes),
                };
                if self.depth == 0 {
                    return node - Scalar::index(self.interior);
                }
                let feature = Scalar::read(DType::I64, 1, [node]);
                let value = Scalar::read(x.dtype, 0, [Scalar::index(axes[0]), feature]).cast(wide);
                let split = Scalar::read(splits, 2, [node]).cast(wide);
                let mut yes = if cx.has(5) {
                    let mode = Scalar::read(DType::U8, 5, [node]);
                    (1..MEMBER).fold(compare(0, value, split), |other, m| {
                        Scalar::select(mode.eq_to(Scalar::int(DType::U8, m.into())), compare(m.into(), value, split), other)
                    })
                } else {
                    compare(self.mode, value, split)
                };
                if cx.has(6) {
                    yes = yes.or(Scalar::read(DType::Bool, 6, [node]).and(Scalar::unary(Unary::IsNan, value)));
                }
                let next = Scalar::read(DType::I64, 3, [node, yes.cast(DType::I64)]);
                if level + 1 == self.depth as usize { next - Scalar::index(self.interior) } else { next }
            });
            steps.push(Step::Compute(c));
        }
        let last = (first + steps.len() - 1) as u32;
        Ok(Meaning::Steps { steps, outputs: vec![last] })
    }
}

fn compare(mode: i64, value: Scalar, split: Scalar) -> Scalar {
    let op = match mode {
        0 => Binary::Le,
        1 => Binary::Lt,
        2 => Binary::Ge,
        3 => Binary::Gt,
        4 => Binary::Eq,
        _ => Binary::Ne,
    };
    Scalar::binary(op, value, split)
}
