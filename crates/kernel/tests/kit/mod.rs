//! A step, its data in some layout, and what a nest of a plan makes of them: for the tests of plans and builders.
#![allow(dead_code, reason = "each test file uses a part")]

use infc_ir::compute::{Compute, Reducer, Step};
use infc_ir::scalar::Scalar;
use infc_ir::{DType, Expr, Tensor};
use infc_kernel::build::{self, Operand};
use infc_kernel::fuse::is_contraction;
use infc_kernel::loops::verify::verify;
use infc_kernel::loops::{Access, Buffer, Space, interp, text};
use infc_kernel::plan::{self, Plan};
use infc_kernel::target::TargetDesc;

pub fn target(vector_bytes: u32, vector_registers: u32, fma: bool) -> TargetDesc {
    TargetDesc {
        name: "test".into(),
        backend: "loops".into(),
        doc: String::new(),
        arch: "x86_64".into(),
        features: vec![],
        vector_bytes,
        vector_registers,
        joined_registers: false,
        broadcast_registers: 0,
        eager_broadcast: false,
        fma,
        byte_dot: false,
        byte_dot_signed: false,
        byte_pairs: false,
        bf16_dot: false,
        slow_bf16_dot: false,
        panel_ahead: 0,
        l2_bytes_per_cycle: 32,
        f16_fma: false,
        tile_bf16: false,
        tile_f16: false,
        tile_bytes: false,
        lookup: 0,
        math_calls: false,
        block_threads: 0,
        warpgroups: false,
        warpgroup_tiles: 0,
        shared_bytes: 48 << 10,
        math: infc_kernel::target::Math::F32,
        small: false,
        widens_f16: false,
        l1_bytes: 32 << 10,
        l1_way_bytes: 0,
        l3_rate: 16,
        plugin: None,
        l2_bytes: 512 << 10,
        l3_bytes: 4 << 20,
    }
}

/// A tensor of small integers in a physical layout: axis order and border.
#[derive(Clone, Debug)]
pub struct Layout {
    pub order: Vec<usize>,
    pub halo: Vec<(i64, i64)>,
}

pub fn plain(rank: usize) -> Layout {
    Layout { order: (0..rank).collect(), halo: vec![(0, 0); rank] }
}

pub fn small(dims: &[usize], seed: u64) -> Tensor {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let n = dims.iter().product::<usize>();
    let values = (0..n).map(|_| {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        (s % 9) as f32 - 4.0
    });
    Tensor::from_vec(dims, values.collect())
}

pub fn operand(t: &Tensor, layout: &Layout, constant: bool) -> Operand {
    let physical: Vec<Expr> = t.dims.iter().zip(&layout.halo).map(|(&d, h)| Expr::from(d as i64 + h.0 + h.1)).collect();
    let strides = Buffer::strides_in_order(&physical, &layout.order);
    Operand {
        buffer: Buffer {
            name: String::new(),
            dtype: t.dtype,
            dims: physical,
            strides,
            space: Space::Global,
            access: Access::Read,
        },
        shift: layout.halo.iter().map(|h| h.0).collect(),
        zeros: layout.halo.iter().map(|h| h.1).collect(),
        constant: constant.then(|| t.clone()),
        tf32: false,
        narrow: None,
    }
}

/// Byte offset of each element of a tensor in its layout, and the size of the memory.
pub fn offsets(dims: &[usize], o: &Operand, width: usize) -> (Vec<usize>, usize) {
    let number = |e: Expr| e.known().expect("known dims") as usize;
    let strides: Vec<usize> = o.buffer.strides.iter().map(|&s| number(s)).collect();
    let n: usize = dims.iter().product();
    let at = (0..n).map(|mut k| {
        let mut offset = 0;
        for a in (0..dims.len()).rev() {
            offset += (k % dims[a] + o.shift[a] as usize) * strides[a];
            k /= dims[a];
        }
        offset * width
    });
    (at.collect(), o.buffer.dims.iter().map(|&d| number(d)).product::<usize>() * width)
}

pub fn to_memory(t: &Tensor, o: &Operand) -> Vec<u8> {
    let w = t.dtype.bytes();
    let (at, size) = offsets(&t.dims, o, w);
    let mut memory = vec![0u8; size];
    for (k, &a) in at.iter().enumerate() {
        memory[a..a + w].copy_from_slice(&t.bytes()[k * w..(k + 1) * w]);
    }
    memory
}

/// Builds and runs the nest of `step`; compares with the step.
pub fn check(step: &Step, sources: &[Tensor], layouts: &[Layout], constant: &[bool], target: &TargetDesc, plan: Option<Plan>) {
    let want = infc_ir::interp::run_step(step, &sources.iter().cloned().map(Some).collect::<Vec<_>>()).expect("the step runs");
    if plan.is_none() {
        // As threads of a GPU.
        let gpu = TargetDesc { block_threads: 128, ..self::target(1, 64, true) };
        check_against(step, sources, layouts, constant, &gpu, None, &want);
    }
    check_against(step, sources, layouts, constant, target, plan, &want);
}

/// As [`check`], for steps that read their border, which the row interpreter does not know.
pub fn check_against(
    step: &Step,
    sources: &[Tensor],
    layouts: &[Layout],
    constant: &[bool],
    target: &TargetDesc,
    plan: Option<Plan>,
    want: &Tensor,
) {
    let mut operands: Vec<Operand> = sources.iter().zip(layouts).zip(constant).map(|((t, l), &c)| operand(t, l, c)).collect();
    operands.push(operand(want, layouts.last().expect("one for the result"), false));
    let layouts_of = operands.clone();
    let (step, operands) = match step {
        Step::Compute(c) if plan.is_none() && !is_contraction(c) => {
            let (c, operands) = build::collapse::collapse(c.clone(), operands);
            (Step::Compute(c), operands)
        }
        other => (other.clone(), operands),
    };
    let plan = plan.unwrap_or_else(|| plan::choose(&step, &operands, target));
    for parts in in_parts(&step, &plan) {
        check_against(&step, sources, layouts, constant, target, Some(parts), want);
    }
    let (at, got) = run_plan(&step, &operands, &plan, sources, &layouts_of, want, target);
    let w = want.dtype.bytes();
    // What follows the chosen positions is undefined; the interpreter says -1 there.
    let open = matches!(step, Step::Filter(_) | Step::Choice(_));
    for (k, &a) in at.iter().enumerate().filter(|&(k, _)| !open || want.to_ints()[k] >= 0) {
        assert_eq!(&got[a..a + w], &want.bytes()[k * w..(k + 1) * w], "element {k} of {:?}; plan {plan}", want.dims);
    }
}

/// As [`check`] with sizes that a run tells: `make` gives the step for what it gets in their places, `dims` those of the sources and of the result, which lie as
/// they are.
pub fn check_open(
    sizes: &[(&str, i64)],
    make: &dyn Fn(&[Expr]) -> Step,
    dims: &dyn Fn(&[Expr]) -> Vec<Vec<Expr>>,
    (seed, constant): (u64, &[bool]),
    target: &TargetDesc,
    plan: Option<Plan>,
) {
    let (open, known): (Vec<Expr>, Vec<Expr>) = sizes.iter().map(|&(s, n)| (Expr::sym(s), Expr::int(n))).unzip();
    let all = dims(&known);
    let number = |d: &Vec<Expr>| d.iter().map(|e| e.known().expect("a size") as usize).collect::<Vec<_>>();
    let sources: Vec<Tensor> = all[..all.len() - 1].iter().enumerate().map(|(k, d)| small(&number(d), seed + k as u64)).collect();
    let want =
        infc_ir::interp::run_step(&make(&known), &sources.iter().cloned().map(Some).collect::<Vec<_>>()).expect("the step runs");
    let operands: Vec<Operand> = dims(&open)
        .into_iter()
        .enumerate()
        .map(|(k, dims)| {
            let order: Vec<usize> = (0..dims.len()).collect();
            let tensor = sources.get(k).unwrap_or(&want);
            let mut o = operand(tensor, &plain(dims.len()), constant.get(k) == Some(&true));
            (o.buffer.strides, o.buffer.dims) = (Buffer::strides_in_order(&dims, &order), dims);
            o
        })
        .collect();
    let step = make(&open);
    let plan = plan.unwrap_or_else(|| plan::choose(&step, &operands, target));
    let nest = build::build("test", &step, &plan, &operands, target);
    let packed = |s: usize| nest.packed.iter().find(|p| p.source == s).map(|p| p.tensor.bytes().to_vec());
    let mut buffers: Vec<Vec<u8>> =
        nest.sources.iter().map(|&s| packed(s).unwrap_or_else(|| sources[s].bytes().to_vec())).collect();
    buffers.push(vec![0xa5; want.bytes().len()]);
    verify(&nest.kernel).unwrap_or_else(|e| panic!("{e}\nplan {plan}\n{}", nest.kernel));
    assert_eq!(text::parse(&nest.kernel.to_string()).as_ref(), Ok(&nest.kernel));
    let given: Vec<i64> =
        nest.kernel.symbols.iter().map(|s| sizes.iter().find(|z| z.0 == *s).expect("one of the sizes").1).collect();
    interp::run(&nest.kernel, &given, &mut buffers).unwrap_or_else(|e| panic!("{e:?}\nplan {plan}\n{}", nest.kernel));
    assert!(buffers.last().is_some_and(|b| b == want.bytes()), "sizes {sizes:?}, plan {plan}\n{}", nest.kernel);
}

/// The plans of a product that take k in two blocks or more, if `plan` is one that takes it whole.
pub fn in_parts(step: &Step, plan: &Plan) -> Vec<Plan> {
    let (Step::Compute(Compute { reduction: Some(r), .. }), Plan::Brgemm(p)) = (step, plan) else { return vec![] };
    let row = infc_kernel::rows::named(p.row).expect("a plan names a row");
    if p.kc.is_some() || p.panels != plan::Panels::Packed || p.stored.is_some() || p.copied || row.block > 1 {
        return vec![];
    }
    let extents: Vec<i64> = r.axes.iter().map(|e| e.known().expect("known dims")).collect();
    let mut all = vec![];
    for (axis, &extent) in extents.iter().enumerate() {
        let whole = |size: i64| axis + 1 < extents.len() || size % row.depth as i64 == 0;
        let sizes = (1..=extent).filter(|&size| extent % size == 0 && whole(size) && (axis > 0 || size < extent));
        all.extend(sizes.map(|size| Plan::Brgemm(plan::Brgemm { kc: Some(plan::Kc { axis, size }), ..p.clone() })));
    }
    all
}

/// Runs the nest of a plan: where the elements of the result are, and its memory. `layouts_of` are the operands as the data lies.
pub fn run_plan(
    step: &Step,
    operands: &[Operand],
    plan: &Plan,
    sources: &[Tensor],
    layouts_of: &[Operand],
    want: &Tensor,
    target: &TargetDesc,
) -> (Vec<usize>, Vec<u8>) {
    let nest = build::build("test", step, plan, operands, target);
    let mut buffers: Vec<Vec<u8>> = nest
        .sources
        .iter()
        .map(|&s| match nest.packed.iter().find(|p| p.source == s) {
            Some(p) => p.tensor.bytes().to_vec(),
            None => to_memory(&sources[s], &layouts_of[s]),
        })
        .collect();
    let out = &layouts_of[layouts_of.len() - 1];
    let w = want.dtype.bytes();
    let (at, size) = offsets(&want.dims, out, w);
    buffers.push(match (&step, &plan) {
        // They come into a base that is there.
        (Step::Scatter(s), Plan::Updates(_)) => {
            let base = Step::Compute(Compute { dims: s.dims.clone(), reduction: None, value: s.base });
            let base = infc_ir::interp::run_step(&base, &sources.iter().cloned().map(Some).collect::<Vec<_>>());
            to_memory(&base.expect("the base runs"), out)
        }
        _ => vec![0xa5; size],
    });
    verify(&nest.kernel).unwrap_or_else(|e| panic!("{e}\nplan {plan}\n{}", nest.kernel));
    assert_eq!(text::parse(&nest.kernel.to_string()).as_ref(), Ok(&nest.kernel));
    interp::run(&nest.kernel, &[], &mut buffers).unwrap_or_else(|e| panic!("{e:?}\nplan {plan}"));
    (at, buffers.pop().expect("the result"))
}

pub fn e(dims: &[usize]) -> Vec<Expr> {
    dims.iter().map(|&d| Expr::from(d)).collect()
}

pub fn read(source: usize, index: &[Expr]) -> Scalar {
    Scalar::read_at(DType::F32, source, index)
}

pub fn matmul(m: usize, k: usize, n: usize, relu: bool) -> Step {
    let zero = Scalar::float(DType::F32, 0.0);
    let c = Compute::reduce(
        &e(&[m, n]),
        &e(&[k]),
        Reducer::Sum,
        |o, r| read(0, &[o[0], r[0]]) * read(1, &[r[0], o[1]]),
        |o, acc| if relu { (acc + read(2, &[o[1]])).max(zero) } else { acc + read(2, &[o[1]]) },
    );
    Step::Compute(c.simplify())
}

/// Numbers whose sums depend on their order.
pub fn rough(dims: &[usize], seed: u64) -> Tensor {
    let n = dims.iter().product::<usize>() as u64;
    let value = |i: u64| {
        let x = (i + 1).wrapping_mul(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        ((x >> 40) as f32 - (1u64 << 23) as f32) / (1u64 << 20) as f32
    };
    Tensor::from_vec(dims, (0..n).map(value).collect())
}

/// A convolution with channels last over a border of zeros; `own` channels each have their own weights (depthwise).
pub fn window(co: usize, ci: usize, (h, w): (usize, usize), dilation: i64, own: bool) -> (Step, Vec<Tensor>, Vec<Layout>) {
    let wide = 2 * dilation; // of the border on both sides together
    let c = Compute::reduce(
        &e(&[1, co, h, w]),
        &e(&if own { vec![3, 3] } else { vec![3, 3, ci] }),
        Reducer::Sum,
        |o, r| {
            let (y, x) = (o[2] + r[0] * dilation - dilation, o[3] + r[1] * dilation - dilation);
            match own {
                true => read(0, &[o[0], o[1], y, x]) * read(1, &[o[1], r[0], r[1]]),
                false => read(0, &[o[0], r[2], y, x]) * read(1, &[o[1], r[0], r[1], r[2]]),
            }
        },
        |o, acc| acc + read(2, &[o[1]]),
    );
    let weights = if own { vec![co, 3, 3] } else { vec![co, 3, 3, ci] };
    let tensors = vec![rough(&[1, ci, h, w], 3), rough(&weights, 5), rough(&[co], 7)];
    let last = vec![0, 2, 3, 1];
    let x = Layout { order: last.clone(), halo: vec![(0, 0), (0, 0), (wide / 2, wide / 2), (wide / 2, wide / 2)] };
    let rank = weights.len();
    (Step::Compute(c.simplify()), tensors, vec![x, plain(rank), plain(1), Layout { order: last, ..plain(4) }])
}
