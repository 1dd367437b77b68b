//! Zero points lifted out of integer contractions: the same numbers, and plain products of bytes.

use infc_ir::compute::{Compute, Reducer, Step};
use infc_ir::interp::run_step;
use infc_ir::scalar::{Binary, Kind, Scalar};
use infc_ir::{DType, Expr, Tensor, TensorType};
use infc_kernel::byte_groups::{GROUP, byte_factors};
use infc_kernel::target::TargetDesc;
use infc_kernel::work::{Id, Item, Memory, Task, Work};
use infc_kernel::zero_point::{byte_read, lift};
use proptest::prelude::*;

/// `sum over k of (x[i, k - before] - zx) * (w[k, j] - zw[j])`, where `x` is `zx` outside.
struct Case {
    x: Tensor,
    zx: Tensor,
    w: Tensor,
    zw: Option<Tensor>,
    before: usize,
    zero_is_constant: bool,
}

/// A machine with or without instructions for bytes: of unsigned with signed ones, of signed ones, tiles.
fn machine([byte_dot, signed, tiles]: [bool; 3]) -> TargetDesc {
    let text = format!(
        "name = \"t\"\nbackend = \"b\"\ndoc = \"\"\narch = \"x86_64\"\nfeatures = []\nvector_bytes = 32\nvector_registers = 16\n\
         fma = true\nbyte_dot = {byte_dot}\nbyte_dot_signed = {signed}\ntile_bytes = {tiles}\nl1_bytes = 32768\nl2_bytes = 524288\nl3_bytes = 2097152\n"
    );
    TargetDesc::from_toml(&text).expect("a machine file")
}

/// The step before and after, each with its sources' values.
fn lifted(case: &Case, instructions: [bool; 3]) -> [(Step, Vec<Option<Tensor>>); 2] {
    let mut work = Work::default();
    let ty = |t: &Tensor| TensorType::new(t.dtype, t.dims.iter().map(|&d| Expr::from(d)));
    let mut inputs: Vec<(Id, Tensor)> = vec![];
    let mut add = |t: &Tensor, constant: bool| {
        let memory = if constant { Memory::Constant(t.clone()) } else { Memory::Input(inputs.len() as u32) };
        let id = work.add(ty(t), memory, "");
        inputs.push((id, t.clone()));
        id
    };
    let mut sources = vec![add(&case.x, false), add(&case.zx, case.zero_is_constant), add(&case.w, true)];
    sources.extend(case.zw.iter().map(|z| add(z, true)));
    let (m, k, n) = (case.x.dims[0], case.w.dims[0], case.w.dims[1]);
    let zx = Scalar::read_at(case.zx.dtype, 1, &[]);
    let c = Compute::reduce(
        &[m, n].map(Expr::from),
        &[Expr::from(k)],
        Reducer::Sum,
        |o, r| {
            let place = r[0] - case.before as i64;
            let inside = Scalar::index(place).within(0, case.x.dims[1]);
            let element = match case.before {
                0 => Scalar::read_at(case.x.dtype, 0, &[o[0], r[0]]),
                _ => Scalar::read_if(0, [Scalar::index(o[0]), Scalar::index(place)], inside, zx),
            };
            let w = Scalar::read_at(case.w.dtype, 2, &[r[0], o[1]]).cast(DType::I32);
            let w = case.zw.as_ref().map_or(w, |z| w - Scalar::read_at(z.dtype, 3, &[o[1]]).cast(DType::I32));
            (element.cast(DType::I32) - zx.cast(DType::I32)) * w
        },
        |_, acc| acc + acc,
    );
    let out = work.add(TensorType::new(DType::I32, [m, n].map(Expr::from)), Memory::Temp, "");
    let step = Step::Compute(c);
    work.items.push(Item::Task(Task {
        step: step.clone(),
        sources: sources.clone(),
        out,
        name: String::new(),
        node: String::new(),
    }));
    lift(&mut work, &machine(instructions));
    let Item::Task(task) = &work.items[0] else { unreachable!("one task") };
    let value = |id: Id| match &work.tensor(id).memory {
        Memory::Constant(t) => t.clone(),
        _ => inputs.iter().find(|(i, _)| *i == id).expect("an input").1.clone(),
    };
    let values = |ids: &[Id]| ids.iter().map(|&id| Some(value(id))).collect::<Vec<_>>();
    [(step, values(&sources)), (task.step.clone(), values(&task.sources))]
}

/// Is it a product of two bytes?
fn plain(step: &Step) -> bool {
    let Step::Compute(c) = step else { return false };
    let byte = |s: Scalar| matches!(s.kind(), Kind::Cast(read) if byte_read(*read).is_some());
    c.reduction.as_ref().is_some_and(|r| matches!(r.body.kind(), Kind::Binary(Binary::Mul, a, b) if byte(*a) && byte(*b)))
}

/// Are both factors of that dtype as they lie in memory, in whole groups?
fn both_are(step: &Step, dtype: DType) -> bool {
    let Step::Compute(c) = step else { return false };
    let of =
        |s: Scalar| matches!(s.kind(), Kind::Cast(read) if read.dtype() == dtype && matches!(read.kind(), Kind::Read { .. }));
    let whole = |e: &Expr| e.known().is_some_and(|k| k % GROUP == 0);
    c.reduction
        .as_ref()
        .is_some_and(|r| matches!(r.body.kind(), Kind::Binary(Binary::Mul, a, b) if of(*a) && of(*b)) && r.axes.iter().all(whole))
}

/// Is it a product of unsigned and signed bytes in whole groups, or of signed ones?
fn grouped(step: &Step, signed: bool) -> bool {
    let Step::Compute(c) = step else { return false };
    let whole = |e: &Expr| e.is(1) || e.known().is_some_and(|k| k % GROUP == 0);
    c.reduction.as_ref().is_some_and(|r| byte_factors(r.body, signed, &|s| s != 0).is_some() && r.axes.iter().all(whole))
}

proptest! {
    #[test]
    fn sums_are_the_same(
        m in 1usize..4, k in 1usize..9, n in 1usize..5, x in prop::collection::vec(any::<u8>(), 512), w in prop::collection::vec(any::<i8>(), 512),
        zx: u8, zw in prop::option::of(prop::collection::vec(any::<i8>(), 24)), before in 0usize..2, zero_is_constant: bool,
        signed: bool, byte_dot: bool, signed_dot: bool, tiles: bool,
    ) {
        // With tiles, sums large enough for them.
        let tiles = tiles && byte_dot;
        let signed_dot = signed_dot && !tiles;
        let [m, k, n] = if tiles { [m + 15, k + 11, n + 15] } else { [m, k, n] };
        let bytes = |dims: &[usize], values: &[u8]| match signed {
            true => Tensor::from_vec(dims.to_vec(), values.iter().map(|&v| v as i8).collect()),
            false => Tensor::from_vec(dims.to_vec(), values.to_vec()),
        };
        let tensor = |dims: [usize; 2], values: &[i8]| Tensor::from_vec(dims, values[..dims[0] * dims[1]].to_vec());
        let case = Case {
            x: bytes(&[m, k], &x[..m * k]),
            zx: bytes(&[], &[zx]),
            w: tensor([k + before, n], &w),
            zw: zw.map(|z| Tensor::from_vec([n], z[..n].to_vec())),
            before,
            zero_is_constant,
        };
        let [(before, sources), (after, lifted_sources)] = lifted(&case, [byte_dot, signed_dot, tiles]);
        let want = run_step(&before, &sources).expect("runs");
        let got = run_step(&after, &lifted_sources).expect("runs");
        prop_assert_eq!(got.to_ints(), want.to_ints());
        // Without zero points of the weights they always fit bytes; a border needs a value that is known.
        if case.zw.is_none() && (case.before == 0 || zero_is_constant) {
            prop_assert!(plain(&after), "{after}");
            // Sums of tiles keep signed data as it is.
            let kept = tiles && signed && both_are(&after, DType::I8);
            // Where both instructions are there, data is taken as it is.
            let wanted = if byte_dot && signed_dot { signed } else { signed_dot };
            prop_assert!(!(byte_dot || signed_dot) || grouped(&after, wanted) || kept, "{after}");
            prop_assert!(!tiles || !signed || (k + case.before).next_multiple_of(4) % 16 != 0 || !grouped(&after, false), "{after}");
        }
    }
}
