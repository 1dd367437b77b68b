//! What ONNX itself says of its operators: operands, type variables and attributes of every version, from a table that a script writes
//! from the `onnx` package; and the same of operators that others define (`contrib.txt`). Errors cite it, and operands, attributes and
//! dtypes that no version takes are refused by it.
//!
//! Of ONNX's operators it does not say what is supported: that is for the operator table and inference. Of the others it does: what is not
//! in `contrib.txt` is refused.

use infc_ir::{DType, Fault, Type, fault};
use std::collections::HashMap;
use std::sync::LazyLock;

/// One version of an operator.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Schema {
    /// The operator set that brought it.
    pub since: i64,
    /// Whose definition it is.
    pub owner: &'static str,
    /// Operands.
    pub inputs: Vec<Parameter>,
    /// Results.
    pub outputs: Vec<Parameter>,
    /// Type variables and what they stand for.
    pub variables: Vec<(&'static str, Vec<&'static str>)>,
    /// Attributes as `name:kind`, with `!` where required.
    pub attributes: Vec<&'static str>,
}

/// An operand or result.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// Its name, with `?` if it is optional and `*` if there may be any number of them.
    pub name: &'static str,
    /// A type variable.
    pub variable: Option<&'static str>,
    /// The types it may have: dtypes, `sequence`, `optional`, `map`.
    pub types: Vec<&'static str>,
}

/// Versions by domain and name.
type Table = HashMap<&'static str, HashMap<&'static str, Vec<Schema>>>;

static TABLE: LazyLock<Table> = LazyLock::new(|| {
    let mut table = Table::new();
    parse(include_str!("schemas.txt"), false, &mut table);
    parse(include_str!("contrib.txt"), true, &mut table);
    table.values_mut().flat_map(HashMap::values_mut).for_each(|versions| versions.sort_by_key(|s| s.since));
    table
});

/// Whose definitions operators of a domain are.
fn owner(domain: &str, foreign: bool) -> &'static str {
    match (domain.split('.').next(), foreign) {
        (_, false) => "ONNX",
        (Some("qonnx"), true) => "QONNX",
        _ => "ONNX Runtime",
    }
}

fn parse(text: &'static str, foreign: bool, table: &mut Table) {
    let mut sets: HashMap<&str, Vec<&'static str>> = HashMap::new();
    for line in text.lines() {
        if let Some(set) = line.strip_prefix("types ") {
            let mut words = set.split(' ');
            sets.insert(words.next().unwrap_or_default(), words.collect());
        } else if let Some(row) = line.strip_prefix("op ") {
            let mut fields = row.split('\t');
            let mut field = || fields.next().unwrap_or_default();
            let head: Vec<&str> = field().split(' ').collect();
            let [domain, name, since] = head[..] else { continue };
            let [inputs, outputs, variables, attributes] = [field(), field(), field(), field()];
            let types = |set: &'static str| sets.get(set).cloned().unwrap_or_else(|| vec![set]);
            let variables: Vec<_> = words(variables).filter_map(|w| w.split_once('=')).map(|(n, s)| (n, types(s))).collect();
            let parameter = |w: &'static str| {
                let (name, of) = w.split_once(':')?;
                let variable = variables.iter().find(|(n, _)| *n == of);
                Some(Parameter {
                    name,
                    variable: variable.map(|v| v.0),
                    types: variable.map_or_else(|| types(of), |v| v.1.clone()),
                })
            };
            let schema = Schema {
                since: since.parse().unwrap_or(1),
                owner: owner(domain, foreign),
                inputs: words(inputs).filter_map(parameter).collect(),
                outputs: words(outputs).filter_map(parameter).collect(),
                attributes: words(attributes).collect(),
                variables: variables.clone(),
            };
            let domain = if domain == "ai.onnx" { "" } else { domain };
            table.entry(domain).or_default().entry(name).or_default().push(schema);
        }
    }
}

fn words(field: &'static str) -> impl Iterator<Item = &'static str> {
    field.split(' ').filter(|w| !w.is_empty())
}

/// All versions, oldest first. None of domains that are not ONNX's.
pub fn history(domain: &str, name: &str) -> &'static [Schema] {
    TABLE.get(domain).and_then(|t| t.get(name)).map_or(&[], Vec::as_slice)
}

/// The version that a model of this operator set means.
pub fn of(domain: &str, name: &str, version: i64) -> Option<&'static Schema> {
    history(domain, name).iter().rfind(|s| s.since <= version)
}

impl Schema {
    /// The parameter of operand `i`.
    pub fn input(&self, i: usize) -> Option<&Parameter> {
        self.inputs.get(i).or_else(|| self.inputs.last().filter(|p| p.name.ends_with('*')))
    }
    /// The rule as a sentence, to be cited in errors.
    pub fn rule(&self, domain: &str, name: &str) -> String {
        let list = |of: &[Parameter]| {
            let shown =
                of.iter().map(|p| format!("{}: {}", p.name, p.variable.map_or_else(|| p.types.join(" | "), str::to_owned)));
            shown.collect::<Vec<_>>().join(", ")
        };
        let domain = if domain.is_empty() { String::new() } else { format!("{domain}:") };
        let mut rule =
            format!("{}'s {domain}{name}-{} is ({}) -> ({})", self.owner, self.since, list(&self.inputs), list(&self.outputs));
        for (variable, types) in &self.variables {
            rule += &format!("; {variable} is {}", types.join(" | "));
        }
        if !self.attributes.is_empty() {
            rule += &format!("; attributes {} (! is required)", self.attributes.join(", "));
        }
        rule
    }
}

/// Refuses operands of dtypes that no version of the operator takes; the nearest form is the version that the model means.
pub fn check_dtypes(domain: &str, name: &str, version: i64, operands: &[Option<&Type>]) -> Result<(), Fault> {
    let versions = history(domain, name);
    let Some(own) = of(domain, name, version).or_else(|| versions.last()) else { return Ok(()) };
    for (i, ty) in operands.iter().enumerate() {
        let Some(dtype) = ty.and_then(|t| t.as_tensor()).map(|t| t.dtype) else { continue };
        // Older and newer versions may differ in what operand `i` is: one that takes it is enough.
        let mut parameters = versions.iter().filter_map(|s| s.input(i)).peekable();
        let (Some(_), Some(p)) = (parameters.peek(), own.input(i)) else { continue };
        if !parameters.any(|p| p.types.contains(&dtype.name())) {
            let nearest = nearest(dtype, &p.types).map_or(String::new(), |n| format!("; the nearest is {n}"));
            return Err(fault!(
                "operand {i} ('{}') is {dtype}, it must be {}{nearest}",
                p.name.trim_end_matches(['?', '*']),
                p.types.join(", ")
            ));
        }
    }
    Ok(())
}

/// Refuses operands, results and attributes that an operator of others (whose definition `contrib.txt` has) does not have, and misses those
/// that it needs. Of ONNX's operators the table says that, for the version that they are raised to.
pub fn check_form(domain: &str, name: &str, operands: &[bool], outputs: usize, attributes: &[&str]) -> Result<(), Fault> {
    let Some(own) = history(domain, name).last().filter(|s| s.owner != "ONNX") else { return Ok(()) };
    let most = |of: &[Parameter]| if of.iter().any(|p| p.name.ends_with('*')) { usize::MAX } else { of.len() };
    for (what, got, of) in [("operands", operands.len(), &own.inputs), ("results", outputs, &own.outputs)] {
        if got > most(of) {
            return Err(fault!("has {got} {what}, it can have {}", of.len()));
        }
    }
    let needed = own.inputs.iter().enumerate().filter(|(_, p)| !p.name.ends_with(['?', '*']));
    if let Some((i, p)) = needed.into_iter().find(|(i, _)| operands.get(*i) != Some(&true)) {
        return Err(fault!("operand {i} ('{}') is missing", p.name));
    }
    let known = || own.attributes.iter().filter_map(|a| a.split_once(':'));
    if let Some(a) = attributes.iter().find(|a| known().all(|(n, _)| n != **a)) {
        let all: Vec<&str> = known().map(|(n, _)| n).collect();
        let all = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
        return Err(fault!("attribute '{a}' is not known; its attributes are: {all}"));
    }
    match known().find(|(n, kind)| kind.ends_with('!') && !attributes.contains(n)) {
        Some((n, _)) => Err(fault!("attribute '{n}' is required")),
        None => Ok(()),
    }
}

/// The dtype of the same class that is nearest in width, the wider one of two.
fn nearest(dtype: DType, of: &[&str]) -> Option<DType> {
    let known = of.iter().filter_map(|n| n.parse::<DType>().ok());
    let same = known.filter(|d| d.class() == dtype.class() || d.is_int() && dtype.is_int());
    same.min_by_key(|d| (d.class() != dtype.class(), d.bits() < dtype.bits(), d.bits().abs_diff(dtype.bits())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use infc_ir::op::OPS;

    #[test]
    fn every_operator_of_onnx_is_there() {
        for o in OPS.iter().filter(|o| matches!(o.domain, "" | "ai.onnx.ml")) {
            let newest = history(o.domain, o.name).last().unwrap_or_else(|| panic!("{} has no schema", o.name));
            let most = if newest.inputs.iter().any(|p| p.name.ends_with('*')) { usize::MAX } else { newest.inputs.len() };
            assert_eq!(o.inputs.1, most, "{}: operands of the table and of ONNX", o.name);
        }
    }

    #[test]
    fn versions_and_rules() {
        let since = |v| of("", "Add", v).map(|s| s.since);
        assert_eq!([since(7), since(12), since(13), since(28)], [Some(7), Some(7), Some(13), Some(14)]);
        let rule = of("", "Concat", 11).expect("there").rule("", "Concat");
        assert!(
            rule.starts_with("ONNX's Concat-11 is (inputs*: T) -> (concat_result: T); T is ") && rule.contains("axis:int!"),
            "{rule}"
        );
        let rule = of("com.microsoft", "FastGelu", 1).expect("there").rule("com.microsoft", "FastGelu");
        assert!(rule.starts_with("ONNX Runtime's com.microsoft:FastGelu-1 is (X: T, bias?: T) -> (Y: T); T is "), "{rule}");
        assert_eq!(of("com.microsoft", "Nothing", 1), None);
    }

    #[test]
    fn every_operator_of_others_is_there_and_no_other() {
        let known = |domain: &str, name: &str| crate::versions::known(domain, name);
        for (domain, name) in crate::supported().iter().map(|s| (s.domain, s.name)) {
            assert!(!history(domain, name).is_empty(), "{domain}:{name} has no schema");
        }
        let (mut foreign, mut own) = (vec![], OPS.iter().filter(|o| !matches!(o.domain, "" | "ai.onnx.ml" | "infc")));
        for (domain, operators) in TABLE.iter() {
            foreign.extend(operators.iter().filter(|(_, s)| s[0].owner != "ONNX").map(|(name, _)| (*domain, *name)));
        }
        foreign.iter().for_each(|(domain, name)| assert!(known(domain, name), "{domain}:{name} is not supported"));
        assert!(own.all(|o| foreign.contains(&(o.domain, o.name))));
    }

    #[test]
    fn forms_of_others() {
        let check = |operands: &[bool], outputs, attributes: &[&str]| {
            check_form("com.microsoft", "FusedGemm", operands, outputs, attributes).map_err(|f| f.0)
        };
        assert_eq!(check(&[true, true], 1, &["transA", "alpha"]), Ok(()));
        assert!(check(&[true; 4], 1, &[]).is_err_and(|e| e == "has 4 operands, it can have 3"));
        assert!(check(&[true, false, true], 1, &[]).is_err_and(|e| e == "operand 1 ('B') is missing"));
        assert!(
            check(&[true; 2], 1, &["axis"])
                .is_err_and(|e| e.starts_with("attribute 'axis' is not known; its attributes are: activation"))
        );
        let attention = check_form("com.microsoft", "Attention", &[true, true], 1, &["scale"]);
        assert!(attention.is_err_and(|f| f.0 == "attribute 'num_heads' is required"));
        assert_eq!(check_form("", "Add", &[true], 3, &["nothing"]), Ok(()));
    }

    #[test]
    fn dtypes() {
        let ty = |d| Type::tensor(d, []);
        let check = |name: &str, d| check_dtypes("", name, 13, &[Some(&ty(d))]).map_err(|f| f.0);
        assert_eq!(check("Sin", DType::F32), Ok(()));
        assert_eq!(check("Sin", DType::BF16), Ok(())); // since 22
        let e = check("Sin", DType::I32).expect_err("no integers");
        assert!(e.contains("operand 0 ('input') is i32, it must be f16, f32, f64"), "{e}");
        let e = check("TopK", DType::I4).expect_err("no narrow integers");
        assert!(e.contains("the nearest is i8"), "{e}");
    }
}
