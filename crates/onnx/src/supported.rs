//! What of ONNX is accepted: operators with the range of operator sets, dtypes and older forms, for listings.

use crate::import::NEWEST_OPSET;
use crate::schema;
use crate::versions;
use infc_ir::DType;
use infc_ir::op::{OPS, OpInfo};

/// An operator that models may use.
#[derive(Clone, Debug)]
pub struct Supported {
    /// Its domain; empty for `ai.onnx`.
    pub domain: &'static str,
    /// Its name.
    pub name: &'static str,
    /// The operator sets of its domain that have it: first and last.
    pub opsets: (i64, i64),
    /// The versions that its owner defines among those, oldest first.
    pub versions: Vec<i64>,
    /// Dtypes of its first operand (its first result, if it has no operand). Empty if that is no tensor.
    pub dtypes: Vec<DType>,
    /// What else its first operand (or result) may be: sequence, optional, map.
    pub containers: Vec<&'static str>,
    /// Names of the attributes of its newest version.
    pub attributes: Vec<&'static str>,
    /// The row of the operator table; without one it becomes other operators when it is read.
    pub row: Option<&'static OpInfo>,
    /// What it does or becomes.
    pub doc: String,
}

/// All operators, those of `ai.onnx` first, by name.
pub fn supported() -> Vec<Supported> {
    let mut all: Vec<Supported> = vec![];
    for row in OPS.iter().filter(|o| o.domain != "infc") {
        all.push(entry(row.domain, row.name, Some(row), row.doc.trim().to_owned()));
    }
    for ((domain, name), doc) in versions::OTHERS {
        all.push(entry(domain, name, None, (*doc).to_owned()));
    }
    for step in versions::all() {
        for &name in step.ops {
            match all.iter_mut().find(|s| (s.domain, s.name) == (step.domain, name)) {
                None => all.push(entry(step.domain, name, None, step.what.to_owned())),
                // The steps on its way, one after another.
                Some(raised) if raised.row.is_none() => raised.doc += &format!("; {}", step.what),
                Some(_) => {}
            }
        }
    }
    all.sort_by_key(|s| (s.domain, s.name));
    all
}

fn entry(domain: &'static str, name: &'static str, row: Option<&'static OpInfo>, doc: String) -> Supported {
    let last = if domain.is_empty() { versions::removed(name).map_or(NEWEST_OPSET, |v| v - 1) } else { newest(domain) };
    let first = if domain.is_empty() { versions::introduced(name) } else { 1 };
    let history = schema::history(domain, name);
    let versions = history.iter().map(|s| s.since).filter(|v| (first..=last).contains(v)).collect();
    let (dtypes, containers) = (dtypes(domain, name), containers(domain, name));
    let newest = history.last().map_or(&[][..], |s| &s.attributes[..]);
    let attributes = newest.iter().filter_map(|a| Some(a.split_once(':')?.0)).collect();
    Supported { domain, name, opsets: (first, last), versions, dtypes, containers, attributes, row, doc }
}

/// The newest operator set of another domain.
fn newest(domain: &str) -> i64 {
    if domain == "ai.onnx.ml" { 5 } else { 1 }
}

/// The dtypes that some version of the operator takes, in the order of ONNX's numbers.
fn dtypes(domain: &str, name: &str) -> Vec<DType> {
    let history = schema::history(domain, name);
    let first = |s: &'static schema::Schema| s.inputs.first().or(s.outputs.first());
    let takes = |d: &DType| history.iter().filter_map(first).any(|p| p.types.contains(&d.name()));
    let refused = |d: &DType| REFUSED.iter().any(|(n, dtypes)| *n == name && dtypes.contains(d));
    DType::ALL.iter().copied().filter(|d| takes(d) && !refused(d)).collect()
}

/// What else than tensors some version of the operator takes.
fn containers(domain: &str, name: &str) -> Vec<&'static str> {
    let first = schema::history(domain, name).iter().filter_map(|s| s.inputs.first().or(s.outputs.first()));
    let takes: Vec<&str> = first.flat_map(|p| p.types.iter().copied()).collect();
    ["sequence", "optional", "map"].into_iter().filter(|c| takes.contains(c)).collect()
}

/// Dtypes that ONNX has for the first operand and we have not.
const REFUSED: &[(&str, &[DType])] = &[
    ("Col2Im", &[DType::String]),
    ("GridSample", &[DType::String]),
    ("QLinearMatMul", &[DType::F8E4M3FN, DType::F8E4M3FNUZ, DType::F8E5M2, DType::F8E5M2FNUZ]),
    ("Resize", &[DType::String, DType::Bool, DType::C64, DType::C128]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_dtypes() {
        let all = supported();
        let of = |name: &str| all.iter().find(|s| s.domain.is_empty() && s.name == name).expect("listed");
        assert_eq!((of("Add").opsets, &of("Add").versions[..]), ((1, 28), &[1, 6, 7, 13, 14][..]));
        assert_eq!(of("Mish").opsets, (18, 28));
        assert_eq!((of("Upsample").opsets, of("Upsample").row.is_none()), ((1, 9), true));
        assert!(of("Sin").dtypes.contains(&DType::BF16) && !of("Sin").dtypes.contains(&DType::I32));
        let conv = all.iter().find(|s| (s.domain, s.name) == ("com.microsoft", "FusedConv")).expect("listed");
        assert!(conv.dtypes.contains(&DType::F32) && conv.versions == [1] && conv.attributes.contains(&"activation_params"));
        assert!(all.iter().all(|s| !s.versions.is_empty() && s.dtypes.len() + s.containers.len() > 0), "each says what it takes");
        assert_eq!(of("SequenceAt").containers, ["sequence"]);
        assert_eq!(of("Constant").opsets, (1, 28));
        assert!(all.is_sorted_by_key(|s| (s.domain, s.name)));
    }
}
