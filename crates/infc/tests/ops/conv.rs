//! Convolutions and pooling.

use crate::elementwise::rows;
use crate::kit::*;
use infc_ir::{DType, Tensor};

/// The window of a convolution or pooling over `rank` spatial dims.
struct Window {
    kernel: Vec<i64>,
    strides: Vec<i64>,
    dilations: Vec<i64>,
    pads: Vec<i64>,
    auto: &'static str,
}

impl Window {
    fn new(r: &mut Random, rank: usize) -> Window {
        let mut each = |low, high| (0..rank).map(|_| r.within(low, high)).collect::<Vec<i64>>();
        let (kernel, strides, dilations) = (each(1, 3), each(1, 3), each(1, 2));
        let auto = r.pick(&["NOTSET", "NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]);
        // No more than the window reaches: a window all in the padding has no largest element.
        let pad = |r: &mut Random, i: usize| r.within(0, (kernel[i] - 1) * dilations[i] / 2);
        let pads = (0..2 * rank).map(|i| pad(r, i % rank)).collect();
        Window { kernel, strides, dilations, pads, auto }
    }
    /// Spatial dims that the window fits into.
    fn space(&self, r: &mut Random) -> Vec<usize> {
        let reach = |i: usize| ((self.kernel[i] - 1) * self.dilations[i] + 1) as usize;
        (0..self.kernel.len()).map(|i| reach(i) + r.size(0, 5)).collect()
    }
    fn on(&self, case: Case) -> Case {
        let case = case.ints("strides", &self.strides).ints("dilations", &self.dilations).str("auto_pad", self.auto);
        if self.auto == "NOTSET" { case.ints("pads", &self.pads) } else { case }
    }
}

fn shape(lead: [usize; 2], space: &[usize]) -> Vec<usize> {
    lead.iter().chain(space).copied().collect()
}

fn sizes(v: &[i64]) -> Vec<usize> {
    v.iter().map(|&k| k as usize).collect()
}

/// Batch, channels of a group on both sides, groups.
fn channels(r: &mut Random) -> (usize, usize, usize, usize) {
    let n = if r.chance(4) { 0 } else { r.size(1, 2) };
    let (cin, cout, groups) = (r.pick(&[1, 2, 3, 8, 16]), r.pick(&[1, 2, 5, 16]), r.pick(&[1, 1, 2, 3]));
    // One channel a group is a case of its own.
    if r.chance(20) { (n, 1, 1, r.pick(&[3, 8, 16])) } else { (n, cin, cout, groups) }
}

fn conv(r: &mut Random) -> Case {
    let rank = r.pick(&[1, 2, 2, 2, 3]);
    let (w, (n, cin, cout, groups)) = (Window::new(r, rank), channels(r));
    let (dtype, space) = (r.float(), w.space(r));
    let case = w.on(op("Conv").int("group", groups as i64));
    let case = if r.chance(50) { case.ints("kernel_shape", &w.kernel) } else { case };
    let case = case.of(r.tensor(dtype, &shape([n, cin * groups], &space), SMALL));
    let case = case.of(r.tensor(dtype, &shape([cout * groups, cin], &sizes(&w.kernel)), SMALL));
    if r.chance(50) { case.of(r.tensor(dtype, &[cout * groups], SMALL)) } else { case }
}

fn transposed(r: &mut Random) -> Case {
    let rank = r.pick(&[1, 2, 2, 3]);
    let (mut w, (n, cin, cout, groups)) = (Window::new(r, rank), channels(r));
    w.pads.iter_mut().for_each(|p| *p = (*p).min(1));
    let (dtype, space) = (r.float(), (0..rank).map(|_| r.size(2, 5)).collect::<Vec<_>>());
    let case = op("ConvTranspose").int("group", groups as i64);
    let case = if w.auto == "VALID" { w.on(case).set("auto_pad", infc_ir::op::Attr::Str("NOTSET".into())) } else { w.on(case) };
    let case = if r.chance(30) {
        let extra: Vec<i64> = w.strides.iter().map(|&s| r.within(0, s - 1)).collect();
        case.ints("output_padding", &extra)
    } else {
        case
    };
    let case = case.of(r.tensor(dtype, &shape([n, cin * groups], &space), SMALL));
    let case = case.of(r.tensor(dtype, &shape([cin * groups, cout], &sizes(&w.kernel)), SMALL));
    if r.chance(50) { case.of(r.tensor(dtype, &[cout * groups], SMALL)) } else { case }
}

fn col2im(r: &mut Random) -> Case {
    let rank = r.size(1, 2);
    let w = Window::new(r, rank);
    let image = w.space(r);
    let steps = |i: usize| {
        let reach = (w.kernel[i] - 1) * w.dilations[i] + 1;
        (image[i] as i64 + w.pads[i] + w.pads[i + rank] - reach) / w.strides[i] + 1
    };
    let blocks: i64 = (0..rank).map(steps).product();
    let block: i64 = w.kernel.iter().product();
    let (n, c) = (r.size(1, 2), r.size(1, 3));
    let case = op("Col2Im").ints("strides", &w.strides).ints("dilations", &w.dilations).ints("pads", &w.pads);
    let case = case.of(r.tensor(DType::F32, &[n, c * block as usize, blocks as usize], SMALL));
    let image: Vec<i64> = image.iter().map(|&d| d as i64).collect();
    case.known(Tensor::from_ints(&image)).known(Tensor::from_ints(&w.kernel))
}

fn causal(r: &mut Random) -> Case {
    let (n, c, t, k) = (r.size(1, 2), r.size(1, 5), r.size(1, 9), r.size(1, 4));
    let case = op("CausalConvWithState").str("activation", r.pick(&["none", "silu", "swish"])).results(2);
    let case = case.of(r.tensor(DType::F32, &[n, c, t], SMALL)).of(r.tensor(DType::F32, &[c, 1, k], SMALL));
    let case = if r.chance(50) { case.of(r.tensor(DType::F32, &[c], SMALL)) } else { case.none() };
    (if r.chance(50) { case.of(r.tensor(DType::F32, &[n, c, k - 1], SMALL)) } else { case }).ulps(4.0)
}

fn deform(r: &mut Random) -> Case {
    let mut w = Window::new(r, 2);
    w.auto = "NOTSET";
    let (n, cin, cout, groups, parts) = (r.size(1, 2), 2, r.size(1, 3), r.size(1, 2), r.size(1, 2));
    let space = w.space(r);
    let out = |i: usize| {
        let reach = (w.kernel[i] - 1) * w.dilations[i] + 1;
        ((space[i] as i64 + w.pads[i] + w.pads[i + 2] - reach) / w.strides[i] + 1) as usize
    };
    let (taps, grid) = (w.kernel.iter().product::<i64>() as usize, [out(0), out(1)]);
    let case = op("DeformConv").int("group", groups as i64).int("offset_group", parts as i64);
    let case = case.ints("strides", &w.strides).ints("dilations", &w.dilations).ints("pads", &w.pads);
    let case = case.of(r.tensor(DType::F32, &shape([n, cin * groups], &space), SMALL));
    let case = case.of(r.tensor(DType::F32, &shape([cout * groups, cin], &sizes(&w.kernel)), SMALL));
    let case = case.of(r.tensor(DType::F32, &shape([n, 2 * taps * parts], &grid), Fill::Real(-2.0, 2.0)));
    let case = if r.chance(50) { case.of(r.tensor(DType::F32, &[cout * groups], SMALL)) } else { case.none() };
    (if r.chance(50) { case.of(r.tensor(DType::F32, &shape([n, taps * parts], &grid), Fill::Real(0.0, 1.0))) } else { case })
        .scaled(64.0)
}

pub const CONV: &[Row] = rows! {
    "CausalConvWithState" => |r| causal(r);
    "Col2Im" => |r| col2im(r);
    "Conv" => |r| conv(r);
    "ConvTranspose" => |r| transposed(r);
    "DeformConv" => |r| deform(r);
};

#[test]
fn convolutions() {
    family("conv", CONV);
}

// ---- pooling ----

fn pool(name: &'static str, r: &mut Random, dtype: DType, fill: Fill) -> Case {
    let rank = r.pick(&[1, 2, 2, 3]);
    let w = Window::new(r, rank);
    let (space, n, c) = (w.space(r), r.size(1, 2), r.size(1, 17));
    let case = w.on(op(name)).ints("kernel_shape", &w.kernel).int("ceil_mode", r.within(0, 1));
    case.of(r.tensor(dtype, &shape([n, c], &space), fill))
}

fn global(name: &'static str, r: &mut Random, fill: Fill) -> Case {
    let (dtype, space) = (r.float(), r.dims(1..=3));
    let space: Vec<usize> = space.into_iter().map(|d| d.max(1)).collect();
    let dims = shape([r.size(1, 2), r.size(1, 17)], &space);
    op(name).of(r.tensor(dtype, &dims, fill))
}

/// Resize by scales or by sizes, of all axes or of some.
fn resize(r: &mut Random) -> Case {
    let rank = r.size(1, 4);
    let dims: Vec<usize> = (0..rank).map(|_| r.size(1, 7)).collect();
    let mode = r.pick(&["nearest", "linear", "cubic"]);
    let coordinates =
        ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_half_pixel_for_nn"];
    let rounding = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"];
    let dtype = r.pick(&[DType::F32, DType::F32, DType::F64, DType::F16]);
    let case = op("Resize").str("mode", mode).str("coordinate_transformation_mode", r.pick(&coordinates));
    let case = case.str("nearest_mode", r.pick(&rounding)).float("cubic_coeff_a", r.pick(&[-0.75, -0.5]));
    let case = case.int("exclude_outside", if mode == "cubic" { r.within(0, 1) } else { 0 });
    let case = case.int("antialias", if mode == "nearest" { 0 } else { r.within(0, 1) });
    // Outer axes keep their extent, as a rule.
    let free = |r: &mut Random, i: usize| i + 2 >= rank || r.chance(20);
    let case = case.of(r.tensor(dtype, &dims, SMALL)).none().scaled(64.0);
    if r.chance(50) {
        let scales = (0..rank).map(|i| if free(r, i) { r.pick(&[0.5f32, 0.6, 1.0, 1.5, 2.0, 2.7, 3.0]) } else { 1.0 });
        let mut scales: Vec<f32> = scales.collect();
        for (s, &d) in scales.iter_mut().zip(&dims) {
            *s = s.max(1.0 / d as f32); // at least one element is left
        }
        return case.known(Tensor::from_vec([rank], scales));
    }
    let wanted: Vec<i64> = (0..rank).map(|i| if free(r, i) { r.within(1, 11) } else { dims[i] as i64 }).collect();
    case.none().known(Tensor::from_ints(&wanted))
}

fn grid_sample(r: &mut Random) -> Case {
    let rank = r.pick(&[2usize, 2, 3]);
    let mode = if rank == 2 { r.pick(&["linear", "nearest", "cubic"]) } else { r.pick(&["linear", "nearest"]) };
    let (n, c) = (r.size(1, 2), r.size(1, 3));
    let (space, out): (Vec<usize>, Vec<usize>) = (0..rank).map(|_| (r.size(1, 6), r.size(1, 5))).unzip();
    let grid: Vec<usize> = [n].into_iter().chain(out).chain([rank]).collect();
    let case = op("GridSample").int("align_corners", r.within(0, 1)).str("mode", mode);
    let case = case.str("padding_mode", r.pick(&["zeros", "border", "reflection"]));
    let case = case.of(r.tensor(DType::F32, &shape([n, c], &space), SMALL));
    // Grid points between samples; what rounding makes of a point at a border of two cells is not the point here.
    case.of(r.tensor(DType::F32, &grid, Fill::Real(-1.3, 1.3))).scaled(64.0)
}

fn unpool(r: &mut Random) -> Case {
    let (n, c, h, w) = (r.size(1, 2), r.size(1, 2), r.size(1, 4), r.size(1, 4));
    let (k, total) = (2usize, n * c * 4 * h * w);
    let count = n * c * h * w;
    let mut places: Vec<i64> = (0..total as i64).collect();
    r.shuffle(&mut places);
    if r.chance(10) {
        places[0] = total as i64;
    }
    let case = op("MaxUnpool").ints("kernel_shape", &[k as i64; 2]).ints("strides", &[k as i64; 2]);
    let case = case.of(r.tensor(DType::F32, &[n, c, h, w], Fill::Any));
    case.of(Tensor::from_vec([n, c, h, w], places[..count].to_vec()))
}

fn regions(r: &mut Random, n: usize) -> Tensor {
    let boxes = (0..n).flat_map(|_| {
        let (x, y) = (r.within(0, 5) as f32, r.within(0, 5) as f32);
        [x, y, x + r.within(1, 6) as f32, y + r.within(1, 6) as f32]
    });
    Tensor::from_vec([n, 4], boxes.collect::<Vec<f32>>())
}

pub const POOL: &[Row] = rows! {
    "AffineGrid" => |r| {
        let (n, rank) = (r.size(1, 2), r.size(2, 3));
        let size: Vec<i64> = [n as i64, 2].into_iter().chain((0..rank).map(|_| r.within(1, 5))).collect();
        let case = op("AffineGrid").int("align_corners", r.within(0, 1)).of(r.tensor(DType::F32, &[n, rank, rank + 1], SMALL));
        case.known(Tensor::from_ints(&size)).scaled(16.0)
    };
    "AveragePool" => |r| { let d = r.float(); let b = r.within(0, 1); pool("AveragePool", r, d, SMALL).int("count_include_pad", b).ulps(2.0) };
    "GlobalAveragePool" => |r| global("GlobalAveragePool", r, SMALL).ulps(2.0);
    "GlobalLpPool" => |r| { let p = r.within(1, 3); global("GlobalLpPool", r, SMALL).int("p", p).ulps(8.0) };
    "GlobalMaxPool" => |r| global("GlobalMaxPool", r, Fill::Any);
    "GridSample" => |r| grid_sample(r);
    "LpPool" => |r| { let (d, p) = (r.float(), r.within(1, 3)); pool("LpPool", r, d, SMALL).int("p", p).ulps(8.0) };
    "MaxPool" => |r| {
        let (d, fill) = (r.pick(&[DType::F32, DType::F32, DType::F64, DType::F16, DType::I8, DType::U8]), r.pick(&[Fill::Any, SMALL]));
        let (results, order) = (r.size(1, 2), r.within(0, 1));
        pool("MaxPool", r, d, fill).int("storage_order", order).results(results)
    };
    "MaxRoiPool" => |r| {
        let (n, boxes) = (r.size(1, 2), r.size(1, 4));
        let corners = regions(r, boxes).to_vec::<f32>();
        let rows: Vec<f32> = corners.chunks(4).flat_map(|c| [r.within(0, n as i64 - 1) as f32, c[0], c[1], c[2], c[3]]).collect();
        let case = op("MaxRoiPool").ints("pooled_shape", &[r.within(1, 3), r.within(1, 3)]).float("spatial_scale", r.pick(&[1.0, 0.5]));
        case.of(r.tensor(DType::F32, &[n, 2, 8, 9], SMALL)).of(Tensor::from_vec([boxes, 5], rows))
    };
    "MaxUnpool" => |r| unpool(r);
    "Resize" => |r| resize(r);
    "RoiAlign" => |r| {
        let (n, boxes) = (r.size(1, 2), r.size(1, 4));
        let case = op("RoiAlign").str("mode", r.pick(&["avg", "max"])).int("output_height", r.within(1, 3)).int("output_width", r.within(1, 3));
        let case = case.str("coordinate_transformation_mode", r.pick(&["half_pixel", "output_half_pixel"]));
        let case = case.int("sampling_ratio", r.within(1, 3)).float("spatial_scale", r.pick(&[1.0, 0.5]));
        let case = case.of(r.tensor(DType::F32, &[n, 2, 9, 8], SMALL)).of(regions(r, boxes));
        case.of(r.tensor(DType::I64, &[boxes], Fill::Within(0, n as i64 - 1))).scaled(32.0)
    };
};

#[test]
fn pooling() {
    family("pool", POOL);
}
