//! The golden model: a design run frame by frame, actor by actor, on whole tensors.
//!
//! It computes what the actors mean, by their definitions: requantisation by its law where it has one. It knows no lanes, no beats and no FIFO
//! depths; the cycle simulation computes the same from beats, with the hardware's form of requantisation.

use crate::design::*;
use infc_ir::op::QuantizeLinear;
use infc_ir::{DType, Fault, Problems, Tensor, fault};

/// Elements of one frame on a stream, in the order of the stream.
pub type Frame = Vec<i64>;

/// Runs one frame: integers of each input in the order of its stream, to those of each output.
pub fn run(design: &Design, inputs: &[Frame]) -> Vec<Frame> {
    run_with(design, inputs, &mut |_, _| {})
}

/// As [`run`]; `see` gets every stream's elements.
pub fn run_with(design: &Design, inputs: &[Frame], see: &mut dyn FnMut(StreamId, &[i64])) -> Vec<Frame> {
    let mut streams: Vec<Option<Frame>> = vec![None; design.streams.len()];
    let mut outputs = vec![vec![]; design.outputs.len()];
    for a in &design.actors {
        let read: Vec<Frame> = a.inputs.iter().map(|s| streams[s.index()].take().expect("producers come first")).collect();
        match &a.kind {
            Kind::Source(i) => put(a, &mut streams, inputs[*i].clone(), see),
            Kind::Sink(i) => outputs[*i] = read.into_iter().next().unwrap_or_default(),
            Kind::Fork => {
                for &s in &a.outputs {
                    see(s, &read[0]);
                    streams[s.index()] = Some(read[0].clone());
                }
            }
            kind => {
                let out = apply(design, a, kind, read);
                put(a, &mut streams, out, see);
            }
        }
    }
    outputs
}

fn put(a: &Actor, streams: &mut [Option<Frame>], frame: Frame, see: &mut dyn FnMut(StreamId, &[i64])) {
    if let Some(&s) = a.outputs.first() {
        see(s, &frame);
        streams[s.index()] = Some(frame);
    }
}

fn apply(design: &Design, a: &Actor, kind: &Kind, mut read: Vec<Frame>) -> Frame {
    let shape = design.input(a, 0).shape;
    let x = std::mem::take(&mut read[0]);
    match kind {
        Kind::Source(_) | Kind::Sink(_) | Kind::Fork => unreachable!("have no result of their own"),
        Kind::Width => x,
        Kind::Pad(p) => pad(p, shape, &x),
        Kind::Window(w) => w.places(shape).into_iter().map(|i| x[i]).collect(),
        Kind::Mvu(m) => mvu(m, &x),
        Kind::Depthwise(d) => by_channel(d.channels, d.taps, d.pe, &x, |c, taps| {
            let sum = d.bias[c] + taps.zip(&d.weights[c * d.taps..]).map(|(x, &w)| x * i64::from(w)).sum::<i64>();
            finish(&d.requant, c, sum)
        }),
        Kind::Pool(p) => by_channel(p.channels, p.taps, p.pe, &x, |c, taps| finish(&p.requant, c, pooled(p, taps))),
        Kind::GlobalPool(p) => {
            (0..p.channels).map(|c| finish(&p.requant, c, pooled(p, x.iter().skip(c).step_by(p.channels).copied()))).collect()
        }
        Kind::Binary(b) => {
            let formats = [0, 1].map(|i| design.input(a, i).format);
            x.iter().zip(&read[1]).map(|(&p, &q)| b.apply(formats, p, q, Requant::define)).collect()
        }
        Kind::Requantise(r) => x.iter().enumerate().map(|(i, &v)| r.define(i % shape[2], v)).collect(),
        Kind::Lookup(t) => x.iter().map(|&v| t.table[(v - design.input(a, 0).format.min()) as usize]).collect(),
        Kind::Softmax(s) => x.chunks(s.channels).flat_map(|pixel| s.apply(pixel)).collect(),
        Kind::Concat(c) => {
            read[0] = x;
            let part = |r: usize, i: usize| read[i][r * c.chunks[i]..(r + 1) * c.chunks[i]].iter().copied();
            (0..c.repeats).flat_map(|r| (0..c.chunks.len()).flat_map(move |i| part(r, i))).collect()
        }
        Kind::Slice(s) => x.chunks(s.period).flat_map(|turn| turn[s.begin..s.begin + s.count].iter().copied()).collect(),
        Kind::Rearrange(r) => {
            let offsets = nest(&r.loops);
            x.chunks(r.block).flat_map(|block| offsets.iter().map(|&o| block[o])).collect()
        }
    }
}

fn finish(requant: &Option<Requant>, channel: usize, acc: i64) -> i64 {
    requant.as_ref().map_or(acc, |r| r.define(channel, acc))
}

fn pad(p: &Pad, [h, w, c]: [usize; 3], x: &[i64]) -> Frame {
    let [top, left, bottom, right] = p.border;
    let width = (w + left + right) * c;
    let mut out = vec![p.value; top * width];
    for row in x.chunks(w * c).take(h) {
        out.extend(std::iter::repeat_n(p.value, left * c));
        out.extend(row);
        out.extend(std::iter::repeat_n(p.value, right * c));
    }
    out.extend(std::iter::repeat_n(p.value, bottom * width));
    out
}

impl Window {
    /// For each element of the result, its position in the image.
    pub fn places(&self, [h, w, c]: [usize; 3]) -> Vec<usize> {
        let [oh, ow] = self.result(h, w);
        let [sh, sw] = self.stride;
        let [dh, dw] = self.dilation;
        let share = c / self.groups;
        let mut out = Vec::with_capacity(oh * ow * self.kernel[0] * self.kernel[1] * c);
        for (y, x) in (0..oh).flat_map(|y| (0..ow).map(move |x| (y, x))) {
            for g in 0..self.groups {
                for (ky, kx) in (0..self.kernel[0]).flat_map(|ky| (0..self.kernel[1]).map(move |kx| (ky, kx))) {
                    let at = ((y * sh + ky * dh) * w + x * sw + kx * dw) * c + g * share;
                    out.extend(at..at + share);
                }
            }
        }
        out
    }
}

fn mvu(m: &Mvu, x: &[i64]) -> Frame {
    let mut out = Vec::with_capacity(x.len() / m.cols * m.rows);
    for (v, vector) in x.chunks(m.cols).enumerate() {
        let group = v % m.groups;
        for row in 0..m.rows {
            let channel = group * m.rows + row;
            let weights = &m.weights[channel * m.cols..(channel + 1) * m.cols];
            let sum: i64 = vector.iter().zip(weights).map(|(&x, &w)| x * i64::from(w)).sum();
            out.push(finish(&m.requant, channel, m.bias[channel] + sum));
        }
    }
    out
}

/// Elements of windows, `pe` channels tap by tap, to one result a channel.
fn by_channel<'a>(
    channels: usize,
    taps: usize,
    pe: usize,
    x: &'a [i64],
    f: impl Fn(usize, std::iter::StepBy<std::iter::Skip<std::iter::Copied<std::slice::Iter<'a, i64>>>>) -> i64,
) -> Frame {
    let folds = channels / pe;
    let part = |(i, part): (usize, &'a [i64])| {
        let first = i % folds * pe;
        (0..pe).map(|lane| f(first + lane, part.iter().copied().skip(lane).step_by(pe))).collect::<Vec<i64>>()
    };
    x.chunks(taps * pe).enumerate().flat_map(part).collect()
}

fn pooled(p: &Pool, taps: impl Iterator<Item = i64>) -> i64 {
    match p.op {
        PoolOp::Max => taps.max().unwrap_or(0),
        PoolOp::Sum => p.bias + taps.sum::<i64>(),
    }
}

impl Binary {
    /// One result. `how` is the requantisation: [`Requant::define`] or [`Requant::apply`].
    pub fn apply(&self, [fa, fb]: [Format; 2], a: i64, b: i64, how: impl Fn(&Requant, usize, i64) -> i64) -> i64 {
        match self {
            Binary::Add { a_mul, b_mul, offset, requant, .. } => {
                let sum = a_mul * a + b_mul * b + offset;
                requant.as_ref().map_or(sum, |r| how(r, 0, sum))
            }
            Binary::Mul { a_zero, b_zero, requant, .. } => how(requant, 0, (a - a_zero) * (b - b_zero)),
            Binary::Table { table } => table[(((a - fa.min()) << fb.bits) + b - fb.min()) as usize],
        }
    }
}

impl Softmax {
    /// The results of one pixel.
    pub fn apply(&self, pixel: &[i64]) -> Vec<i64> {
        if let Some(pair) = &self.pair {
            let middle = (pair.len() as i64 - 1) / 2;
            return [pixel[0] - pixel[1], pixel[1] - pixel[0]].map(|d| pair[(d + middle) as usize]).to_vec();
        }
        let most = pixel.iter().max().copied().unwrap_or(0);
        let power = |&x: &i64| self.exp[((most - x) as usize).min(self.exp.len() - 1)];
        let sum: i64 = pixel.iter().map(power).sum();
        pixel.iter().map(|x| ((power(x) * self.gain + sum / 2) / sum + self.zero).clamp(self.min, self.max)).collect()
    }
}

impl Port {
    /// A tensor of the model as a frame of the stream: quantised, if the model's tensor is real numbers, and in the stream's order.
    pub fn frame(&self, t: &Tensor) -> Result<Frame, Fault> {
        if t.dims != self.dims || t.dtype != self.dtype {
            return Err(fault!("input '{}' is {}{:?}, not {}{:?}", self.name, self.dtype, self.dims, t.dtype, t.dims));
        }
        let values = match self.scale {
            None => t.to_ints(),
            Some(scale) => quantise(t, scale, self.zero, self.limits)?,
        };
        Ok(self.places().into_iter().map(|p| values[p]).collect())
    }
    /// A frame of the stream as the model's tensor.
    pub fn tensor(&self, frame: &[i64]) -> Tensor {
        let mut values = vec![0; frame.len()];
        for (&q, p) in frame.iter().zip(self.places()) {
            values[p] = q;
        }
        match self.scale {
            None => Tensor::from_values(self.dtype, self.dims.clone(), values.into_iter().map(|q| q as u64)),
            Some(scale) => {
                let real = |q: i64| (q - self.zero) as f32 * scale;
                Tensor::from_vec(self.dims.clone(), values.into_iter().map(real).collect::<Vec<f32>>())
            }
        }
    }
}

fn quantise(t: &Tensor, scale: f32, zero: i64, [min, max]: [i64; 2]) -> Result<Vec<i64>, Fault> {
    let op = QuantizeLinear { axis: 1, block_size: 0, output_dtype: 0, precision: 0, saturate: 1 };
    let dtype = if min < 0 { DType::I16 } else { DType::U16 };
    let zero = Tensor::from_values(dtype, [], [zero as u64]);
    let out = infc_ir::interp::eval_op(&op.into(), &[Some(t.clone()), Some(Tensor::from_vec([], vec![scale])), Some(zero)], 1)?;
    Ok(out[0].to_ints().into_iter().map(|q| q.clamp(min, max)).collect())
}

/// Runs a design on tensors of the model: one frame.
pub fn run_tensors(design: &Design, inputs: &[Tensor]) -> Result<Vec<Tensor>, Problems> {
    if inputs.len() != design.inputs.len() {
        let message = format!("the design has {} inputs, {} are given", design.inputs.len(), inputs.len());
        return Err(Problems::one(format!("design '{}'", design.name), message, "give one tensor an input"));
    }
    let frames: Result<Vec<Frame>, Fault> = design.inputs.iter().zip(inputs).map(|(p, t)| p.frame(t)).collect();
    let frames =
        frames.map_err(|f| Problems::one(format!("design '{}'", design.name), f.0, "give tensors as the model has them"))?;
    Ok(design.outputs.iter().zip(run(design, &frames)).map(|(p, frame)| p.tensor(&frame)).collect())
}
