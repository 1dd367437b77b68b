//! Tests of the text form of graphs: examples, wrong texts, and round trips of random graphs.

use super::*;
use crate::graph::{Graph, NodeData, Region, Source, SourceNode, Value};
use crate::op::{self, Attr, Op};
use crate::types::{Fact, Type};
use crate::{DType, Expr, Tensor};
use proptest::prelude::*;
use std::collections::BTreeSet;

const TINY: &str = r#"graph "tiny \"quoted\"" {
  ir_version 8
  opset "" 13
  opset "com.microsoft" 1
  metadata "author" = "some\nbody"
  source 0 "fc1" "Gemm" 13
  source 1 "" "com.microsoft:QLinearSigmoid" 1
  const %0: f32[4] "bias" = {0.0, 1e-20, -2.5, inf}
  const %1: string[1] = {"a\xffb"}
  const %2: bool[] = {true}
  region "main" (%3: f32[batch, 4] "x", %4: seq(optional(map(i64, u8["i0"])))) {
    %5: f32[batch, 4] "y", %6: i64[2] is [batch, 4] = Add(%3, %0) @"fc1" from [0, 1]
    %7: f32[] = com.microsoft:QLinearSigmoid(%3, _, %1, %0) from [0]
    = RNN(%3, %3, %3) {activation_alpha = [1.0, nan(0x7fc00000), -0.0], activations = strings[], clip = 0.5}
    %8: f32[n] = If(%2) from [0]
      region "then" () {
        %9: i64[1] = infc:DimVector() {exprs = ["batch", "2*i0 + 1"]}
        yield %9
      }
      region () {
        %10: i64[] = ConstantOfShape(%0) {value = tensor i64[1] {7}}
        yield
      }
    yield %5, %0
  }
}
"#;

#[test]
fn example_round_trips() {
    let requires = "  require batch broadcasts with 4 \"Add 'y'\" \"why\"\n  require mod(n, 2) == 0 \"at\" \"text\"\n  assume n == 2 \"at\" \"text\"\n  source 0";
    for text in [TINY.to_owned(), TINY.replacen("  source 0", requires, 1)] {
        let g = parse(&text).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(print(&g), text);
    }
    let g = parse(TINY).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(parse(&print(&g)).map(|g| print(&g)), Ok(print(&g)));
}

#[test]
fn wrong_texts_name_the_place() {
    for (find, put, at) in [
        ("%3: f32[batch, 4]", "%0: f32[batch, 4]", "line 11, column 18: %0 is defined twice"),
        ("Add(%3, %0)", "Add(%3, %5)", "line 12, column 63: %5 is not defined before its use"),
        ("Add(", "Plus(", "line 12, column 55: there is no operator 'Plus'"),
        ("{value = tensor i64[1] {7}}", "{value = 3}", "line 21, column 22: attribute 'value' must be a tensor"),
        ("clip = 0.5", "crop = 0.5", "line 14, column 7: RNN has no attribute 'crop'"),
        ("{0.0, 1e-20, -2.5, inf}", "{0.0}", "line 8, column 29: 1 elements do not fill f32[4]"),
        ("{0.0, 1e-20, -2.5, inf}", "#12ab", "line 8, column 29: the data of this constant was left out"),
        ("{0.0, 1e-20, -2.5, inf}", "blob 0", "line 8, column 29: there is no blob 0"),
        ("from [0, 1]", "from [0, 2]", "line 12, column 83: there is no source 2"),
        ("yield %5, %0\n  }\n}", "yield %5, %0\n  }\n", "line 27, column 1: '}' is expected, not the end of the text"),
    ] {
        let text = TINY.replacen(find, put, 1);
        assert_ne!(text, TINY);
        let error = parse(&text).unwrap_err().to_string();
        assert!(error.starts_with(at), "{error}");
    }
    for cut in 0..TINY.len() - 2 {
        assert!(!TINY.is_char_boundary(cut) || parse(&TINY[..cut]).is_err());
    }
    assert!(parse(&format!("graph \"\" {{ region () {{ %0: {}", "seq(".repeat(100_000))).is_err());
}

#[test]
fn elided_text_shows_hashes() {
    let mut g = Graph::new("");
    let c = g.add_constant(Tensor::zeros(DType::F32, [100]), "zeros");
    g.regions[0].results.push(c);
    let text = print_with(&g, Options { elide: true });
    assert!(text.contains("const %0: f32[100] \"zeros\" = #"), "{text}");
    assert_eq!(parse(&print(&g)).unwrap(), g.compact());
}

/// A random graph: well-formed as an arena, without meaning.
fn any_graph() -> impl Strategy<Value = Graph> {
    prop::collection::vec((0usize..9, any::<u32>(), any::<u32>(), any::<bool>()), 0..24).prop_map(|steps| {
        let mut g = Graph::new("random");
        (0..3).for_each(|i| {
            g.add_source(SourceNode { name: format!("s{i}"), op: "Op".into(), opset: i });
        });
        let mut open: Vec<(Region, Vec<Value>)> = vec![(Graph::MAIN, vec![])];
        let dims = [Expr::sym("n"), Expr::int(3), Expr::sym("n") * 2 + 1, Expr::sym("odd name")];
        for (kind, a, b, flag) in steps {
            let pick = |vs: &[Value], k: u32| (!vs.is_empty()).then(|| vs[k as usize % vs.len()]);
            let nested = open.len() > 1;
            let (region, values) = open.last_mut().expect("the main region stays open");
            let ty = Type::tensor(DType::ALL[a as usize % DType::ALL.len()], dims[..b as usize % 4].to_vec());
            let region = *region;
            match kind {
                0 => values.push(g.add_param(region, ty, if flag { "p" } else { "" })),
                1 => values.push(g.add_constant(Tensor::from_vec([2], vec![f32::from_bits(a), f32::from_bits(b)]), "")),
                2 => {
                    let bytes: Vec<u8> = (0..a % 60).map(|i| (i.wrapping_mul(b) >> 3) as u8).collect();
                    values.push(g.add_constant(Tensor::from_vec([bytes.len()], bytes), "blob"));
                }
                3 if nested => {
                    let (r, values) = open.pop().expect("more than one");
                    g.regions[r.index()].results.extend(pick(&values, a));
                }
                _ => {
                    let attrs = &mut op::Attrs(vec![
                        ("axis".to_owned(), Attr::Int(i64::from(a))),
                        ("epsilon".to_owned(), Attr::Float(f32::from_bits(b & 0x7f7f_ffff))),
                    ]);
                    let op = Op::from_attrs("", "LayerNormalization", attrs).unwrap().unwrap();
                    let inputs = vec![pick(values, a), None, pick(values, b)];
                    let ints = flag.then(|| vec![dims[0], dims[2]]);
                    let facts = vec![Fact { ints, ..Fact::of(ty) }; (b % 3) as usize];
                    let n = g.make_node(op, inputs, vec![], facts, "node", BTreeSet::from([Source(a % 3)]));
                    let NodeData { outputs, .. } = g.node(n);
                    values.extend(outputs);
                    if a % 11 != 0 {
                        g.regions[region.index()].nodes.push(n);
                    } else {
                        values.truncate(values.len() - (b % 3) as usize); // a dead node
                    }
                    if kind > 7 {
                        let r = g.add_region("body");
                        g.nodes[n.index()].regions.push(r);
                        if a % 11 != 0 {
                            open.push((r, vec![]));
                        }
                    }
                }
            }
        }
        for (r, values) in open {
            g.regions[r.index()].results.extend(values.last());
        }
        g
    })
}

proptest! {
    #[test]
    fn random_graphs_round_trip(g in any_graph()) {
        let text = print(&g);
        let back = parse(&text).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        prop_assert_eq!(&back, &g.compact());
        prop_assert_eq!(back.compact(), back.clone());
        prop_assert_eq!(print(&back), text);
    }

    #[test]
    fn any_text_parses_or_fails(text in "[ -~\n]{0,80}") {
        let _ = parse(&text);
        let _ = parse(&format!("graph \"\" {{ region () {{ {text}"));
        let _ = text.parse::<crate::Scalar>();
        let _ = text.parse::<crate::compute::Step>();
    }
}
