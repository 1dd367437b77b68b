//! Structured pruning on random graphs: the graph without the removed units computes what the whole one computes with the
//! same positions multiplied by 0.

mod nets;

use infc_compress::data::Random;
use infc_compress::prune::apply::{kept, masked, shrink};
use infc_compress::prune::axes::analyse;
use infc_ir::graph::Graph;
use infc_ir::{Tensor, interp, verify};
use nets::Net;
use proptest::prelude::*;

/// Removes each unit with probability `share` where that leaves no axis empty; gives the number removed.
fn check(g: &Graph, seed: u64, share: f64) -> usize {
    verify::verify(g).unwrap();
    let analysis = analyse(g);
    let mut random = Random(seed);
    let mut removed = vec![false; analysis.units.len()];
    for u in 0..removed.len() {
        if random.unit() < share {
            removed[u] = true;
            removed[u] = kept(g, &analysis, &removed).is_ok();
        }
    }
    let kept = kept(g, &analysis, &removed).unwrap();
    let mut small = g.clone();
    shrink(&mut small, &kept).unwrap();
    verify::verify(&small).unwrap_or_else(|p| panic!("{p}\n{}", infc_ir::text::print(&small)));
    let masked = masked(g, &analysis, &kept).unwrap();
    let inputs: Vec<Tensor> = nets::inputs(g, &mut random);
    let want = interp::run_tensors(&masked, &inputs).unwrap();
    let got = interp::run_tensors(&small, &inputs).unwrap();
    for (w, g) in want.iter().zip(&got) {
        assert_eq!(w.dims, g.dims);
        let (w, g) = (w.to_vec::<f32>(), g.to_vec::<f32>());
        let scale = w.iter().fold(1.0f32, |m, v| m.max(v.abs()));
        let worst = w.iter().zip(&g).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= 1e-4 * scale, "differs by {worst} of {scale}\n{}", infc_ir::text::print(&small));
    }
    removed.iter().filter(|r| **r).count()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: std::env::var("PROPTEST_CASES").ok().and_then(|c| c.parse().ok()).unwrap_or(60), ..ProptestConfig::default() })]
    #[test]
    fn pruned_equals_masked(seed in any::<u64>(), share in 0.1f64..0.9) {
        let g = nets::random(seed);
        check(&g, seed ^ 1, share);
    }
}

#[test]
fn random_graphs_have_much_to_prune() {
    let removed: usize = (0..20).map(|seed| check(&nets::random(seed), seed, 0.5)).sum();
    assert!(removed > 100, "only {removed} units went");
}

/// The extents of the axes of constants that one unit takes something from, with how many units there are of that kind.
fn units(g: &Graph) -> Vec<String> {
    let analysis = analyse(g);
    let mut groups = vec![(0, String::new()); analysis.groups];
    for unit in &analysis.units {
        let mut names: Vec<String> = unit
            .cells
            .iter()
            .filter(|(a, _)| g.constant(a.value).is_some())
            .map(|(a, _)| format!("{}.{}", g.value(a.value).name, a.axis))
            .collect();
        names.dedup();
        groups[unit.group] = (groups[unit.group].0 + 1, names.join(" "));
    }
    groups.into_iter().map(|(n, names)| format!("{n} of {names}")).collect()
}

#[test]
fn a_chain_and_its_batch_norm() {
    let mut n = Net::new(&[2, 3, 8, 8], 0);
    let x = n.input();
    let a = n.conv(x, 6, 3, 1, "a");
    let a = n.batch_norm(a, "bn");
    let a = n.relu(a);
    let b = n.conv(a, 4, 1, 1, "b");
    let g = n.finish(&[b]);
    assert_eq!(units(&g), ["6 of a.0 a.bias.0 bn.0 bn.0 bn.0 bn.0 b.1".replace("bn.0 bn.0 bn.0 bn.0", "bn.0")]);
}

#[test]
fn a_residual_ties_its_branches() {
    let mut n = Net::new(&[1, 3, 8, 8], 0);
    let x = n.input();
    let a = n.conv(x, 6, 3, 1, "a");
    let b = n.conv(a, 5, 3, 1, "b");
    let c = n.conv(b, 6, 3, 1, "c");
    let sum = n.add(a, c);
    let y = n.conv(sum, 2, 1, 1, "y");
    let g = n.finish(&[y]);
    assert_eq!(units(&g), ["6 of a.0 a.bias.0 b.1 c.0 c.bias.0 y.1", "5 of b.0 b.bias.0 c.1"]);
}

#[test]
fn depthwise_goes_with_its_input_and_groups_in_step() {
    let mut n = Net::new(&[1, 3, 8, 8], 0);
    let x = n.input();
    let a = n.conv(x, 6, 3, 1, "a");
    let d = n.conv(a, 12, 3, 6, "d");
    let e = n.conv(d, 8, 3, 4, "e");
    let y = n.conv(e, 2, 1, 1, "y");
    let g = n.finish(&[y]);
    // 12 channels in 4 groups of 3: position 0, 1, 2 of each group; the depthwise one has two results a channel, so that all hang
    // together; of the 8 results in 4 groups of 2 two kinds.
    assert_eq!(units(&g), ["1 of a.0 a.bias.0 d.0 d.bias.0 e.1", "2 of e.0 e.bias.0 y.1"]);
}

#[test]
fn concatenated_parts_are_cut_by_themselves() {
    let mut n = Net::new(&[1, 3, 8, 8], 0);
    let x = n.input();
    let a = n.conv(x, 4, 3, 1, "a");
    let b = n.conv(x, 5, 3, 1, "b");
    let c = n.concat(&[a, b], 1);
    let y = n.conv(c, 2, 1, 1, "y");
    let g = n.finish(&[y]);
    assert_eq!(units(&g).len(), 1);
    assert_eq!(analyse(&g).units.len(), 9);
}

#[test]
fn heads_and_the_width_of_an_mlp() {
    let mut n = Net::new(&[2, 5, 12], 0);
    let x = n.input();
    let x = n.attention(x, 3, "att");
    let y = n.mlp(x, 20, "mlp");
    let g = n.finish(&[y]);
    let found = units(&g);
    assert!(found.iter().any(|u| u.starts_with("3 of att.qkv.1")), "{found:?}");
    assert!(found.iter().any(|u| u.starts_with("20 of mlp.up.1")), "{found:?}");
    assert_eq!(found.len(), 2, "{found:?}");
    // A head is 3 x 4 columns of the projection in, and 4 rows of the one out.
    let analysis = analyse(&g);
    let head = analysis.units.iter().find(|u| u.cells.iter().any(|(a, _)| g.value(a.value).name == "att.qkv")).unwrap();
    let count = |name: &str| head.cells.iter().filter(|(a, _)| g.value(a.value).name == name).count();
    assert_eq!((count("att.qkv"), count("att.out")), (12, 4));
}

#[test]
fn a_flatten_without_a_factor_to_prune_holds_its_axis() {
    // Rows and columns of pictures: what a position of the product's weights meets cannot go. No other reshape is there to be chosen for.
    let mut n = Net::new(&[2, 1, 4, 4], 0);
    let x = n.input();
    let a = n.conv(x, 1, 3, 1, "a");
    let flat = n.reshape(a, &[2, 16]);
    let y = n.gemm(flat, 5, "y");
    let g = n.finish(&[y]);
    assert_eq!(units(&g), Vec::<String>::new());
    let seed = 7_234_116_910_267_762_401;
    check(&nets::random(seed), seed ^ 1, 0.1);
}
