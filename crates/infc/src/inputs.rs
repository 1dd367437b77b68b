//! Inputs for a run: from files, seeded random numbers, zeros, or ones (as masks want them).

use crate::cases;
use crate::npy;
use infc_ir::dtype::Class;
use infc_ir::interp::Item;
use infc_ir::{DType, Fault, Problems, Tensor, TensorType, Type, fault};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the value of an input comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A `.npy` file, or a `.pb` file with a serialised tensor, sequence or optional.
    File(PathBuf),
    /// Random numbers from this seed.
    Random(u64),
    /// Zeros.
    Zeros,
    /// Ones: true where they are conditions.
    Ones,
}

impl Source {
    /// `random:SEED`, `random`, `zeros`, `ones`, or else a file.
    pub fn parse(text: &str) -> Result<Source, String> {
        match text.split_once(':') {
            Some(("random", seed)) => Ok(Source::Random(seed.parse().map_err(|_| format!("'{seed}' is no seed"))?)),
            _ if text == "random" => Ok(Source::Random(0)),
            _ if text == "zeros" => Ok(Source::Zeros),
            _ if text == "ones" => Ok(Source::Ones),
            _ if text.is_empty() => Err("a file, random:SEED, zeros or ones is needed".to_owned()),
            _ => Ok(Source::File(text.into())),
        }
    }
}

/// The value of an input named `name` of type `ty`; `dims` has the values of symbols for made-up data.
pub fn make(source: &Source, name: &str, ty: &Type, dims: &BTreeMap<String, i64>) -> Result<Item, Problems> {
    let problem = |f: Fault, help: &str| Problems::one(format!("input '{name}'"), f.0, help);
    let value = match source {
        Source::File(path) => return read_file(path, ty),
        Source::Random(seed) => made(ty, dims, |t, sizes| random(t.dtype, sizes, *seed ^ hash(name))),
        Source::Zeros => made(ty, dims, |t, sizes| Ok(Tensor::zeros(t.dtype, sizes))),
        Source::Ones => made(ty, dims, |t, sizes| ones(t.dtype, sizes)),
    };
    value.map_err(|f| problem(f, "give it a file: --input NAME=FILE.npy or FILE.pb"))
}

/// Reads a `.npy` or `.pb` file.
pub fn read_file(path: &Path, ty: &Type) -> Result<Item, Problems> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("npy") => {
            let bytes = fs::read(path).map_err(|e| cases::io_problem(path, &e))?;
            let tensor =
                npy::read(&bytes).map_err(|e| Problems::one(path.display().to_string(), e, "write it with numpy.save"))?;
            Ok(Item::Tensor(tensor))
        }
        Some("pb") => cases::read_pb(path, ty),
        _ => Err(Problems::one(
            path.display().to_string(),
            "is neither .npy nor .pb",
            "give one of these, random:SEED, zeros or ones",
        )),
    }
}

fn made(
    ty: &Type,
    symbols: &BTreeMap<String, i64>,
    make: impl FnOnce(&TensorType, Vec<usize>) -> Result<Tensor, Fault>,
) -> Result<Item, Fault> {
    let Some(t) = ty.as_tensor() else { return Err(fault!("values of type {ty} cannot be made up")) };
    let value = |e: infc_ir::Expr| match e.node() {
        infc_ir::expr::Node::Sym(s) => symbols.get(*s).copied().or(Some(1)),
        _ => None,
    };
    let sizes: Option<Vec<usize>> = t.dims.iter().map(|d| d.eval(&value).and_then(|n| usize::try_from(n).ok())).collect();
    let sizes = sizes.ok_or_else(|| fault!("dims of {t} cannot be computed"))?;
    if sizes.iter().try_fold(t.dtype.bytes(), |n, &d| n.checked_mul(d)).is_none_or(|n| n > 1 << 40) {
        return Err(fault!("{t} is too large"));
    }
    Ok(Item::Tensor(make(t, sizes)?))
}

/// Uniform: floats in [-1, 1), bools, integers in 0..=9 (small, so that they are valid class or token numbers of most models).
fn random(dtype: DType, dims: Vec<usize>, seed: u64) -> Result<Tensor, Fault> {
    if matches!(dtype.class(), Class::Complex | Class::Text) {
        return Err(fault!("random {dtype} values cannot be made up"));
    }
    let mut state = seed;
    let count: usize = dims.iter().product();
    let value = |_| {
        let bits = next(&mut state);
        match dtype.class() {
            Class::Float => {
                let unit = (bits >> 40) as f64 / (1u64 << 23) as f64 - 1.0;
                infc_ir::eval::cast(DType::F64, dtype, unit.to_bits())
            }
            Class::Signed | Class::Unsigned => {
                let (_, most) = dtype.int_range().expect("an integer dtype");
                (bits >> 33) % (most.min(9) as u64 + 1)
            }
            Class::Bool | Class::Complex | Class::Text => bits >> 63,
        }
    };
    Ok(Tensor::from_values(dtype, dims, (0..count).map(value)))
}

fn ones(dtype: DType, dims: Vec<usize>) -> Result<Tensor, Fault> {
    let one = match dtype.class() {
        Class::Complex | Class::Text => return Err(fault!("ones of {dtype} cannot be made up")),
        Class::Float => infc_ir::eval::cast(DType::F64, dtype, 1f64.to_bits()),
        Class::Signed | Class::Unsigned | Class::Bool => 1,
    };
    let count: usize = dims.iter().product();
    Ok(Tensor::from_values(dtype, dims, std::iter::repeat_n(one, count)))
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a, so that inputs of one seed differ.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use infc_ir::Expr;

    #[test]
    fn sources_parse() {
        assert_eq!(Source::parse("random:7"), Ok(Source::Random(7)));
        assert_eq!(Source::parse("zeros"), Ok(Source::Zeros));
        assert_eq!(Source::parse("ones"), Ok(Source::Ones));
        assert_eq!(Source::parse("a/b.npy"), Ok(Source::File("a/b.npy".into())));
        assert!(Source::parse("random:x").is_err());
        assert!(Source::parse("").is_err());
    }

    #[test]
    fn ones_are_one_in_every_dtype() {
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64, DType::I64, DType::U8, DType::I4, DType::Bool] {
            let made = make(&Source::Ones, "x", &Type::tensor(dtype, [Expr::int(3)]), &BTreeMap::new()).unwrap();
            let t = made.as_tensor().expect("a tensor");
            let number = |i: usize| if dtype.is_float() { t.float(i) } else { t.value(i) as f64 };
            assert!((0..3).all(|i| number(i) == 1.0), "{dtype}");
        }
        assert!(make(&Source::Ones, "x", &Type::tensor(DType::String, [Expr::int(3)]), &BTreeMap::new()).is_err());
    }

    #[test]
    fn made_up_values_follow_type_and_seed() {
        let ty = Type::tensor(DType::F32, [Expr::sym("batch"), Expr::int(8)]);
        let dims = BTreeMap::from([("batch".to_owned(), 3)]);
        let make = |seed| match super::make(&Source::Random(seed), "x", &ty, &dims).unwrap() {
            Item::Tensor(t) => t,
            other => panic!("{other:?}"),
        };
        assert_eq!(make(1), make(1));
        assert_ne!(make(1), make(2));
        assert_eq!(make(1).dims, [3, 8]);
        assert!(make(1).to_vec::<f32>().iter().all(|v| (-1.0..1.0).contains(v)));
        assert!(super::make(&Source::Random(0), "s", &Type::tensor(DType::String, []), &dims).is_err());
    }
}
