//! One function an actor: its iterations as pipelined loops that are named after axes.

use super::code::{Code, ap, holder, number, table};
use super::requant::{constants, requant};
use infc_stream::design::*;

/// Prints actors.
pub struct Printer<'a> {
    /// The design.
    pub design: &'a Design,
    /// Functions.
    pub code: Code,
    /// Constants, a file of their own.
    pub weights: String,
    /// Inputs and outputs are arrays, else streams.
    pub arrays: bool,
    /// The function `nearest` is called.
    pub nearest: bool,
}

/// What the channels of an image are in beats, and its pixels.
struct Image {
    height: usize,
    width: usize,
    beats: usize,
}

impl Image {
    fn of(s: &Stream) -> Image {
        Image { height: s.shape[0], width: s.shape[1], beats: s.shape[2] / s.lanes }
    }
    fn pixels(&self) -> usize {
        self.height * self.width
    }
}

/// The type of a stream's beats.
pub fn beat(s: &Stream) -> String {
    format!("{}_t", s.name)
}

impl<'a> Printer<'a> {
    /// Prints the function of an actor.
    pub fn actor(&mut self, a: &'a Actor) {
        let ins: Vec<&Stream> = a.inputs.iter().map(|&s| self.design.stream(s)).collect();
        let outs: Vec<&Stream> = a.outputs.iter().map(|&s| self.design.stream(s)).collect();
        self.helpers(a, &ins, &outs);
        self.code.line(format!("/* {} */", crate::names::comment(&a.origin)));
        let mut list: Vec<String> = vec![];
        let name = |prefix: &str, k: usize, n: usize| if n == 1 { prefix.to_owned() } else { format!("{prefix}{k}") };
        if let Kind::Source(_) = a.kind {
            list.push(port(outs[0], "from", self.arrays, true));
        }
        list.extend(ins.iter().enumerate().map(|(k, s)| format!("hls::stream<{}> &{}", beat(s), name("in", k, ins.len()))));
        list.extend(outs.iter().enumerate().map(|(k, s)| format!("hls::stream<{}> &{}", beat(s), name("out", k, outs.len()))));
        if let Kind::Sink(_) = a.kind {
            list.push(port(ins[0], "to", self.arrays, false));
        }
        self.code.open(format!("static void {}({})", a.name, list.join(", ")));
        match &a.kind {
            Kind::Source(_) => self.source(outs[0]),
            Kind::Sink(_) => self.sink(ins[0]),
            Kind::Pad(p) => self.pad(p, ins[0], outs[0]),
            Kind::Window(w) => self.window(w, ins[0], outs[0]),
            Kind::Mvu(m) => self.mvu(&a.name, m, ins[0], outs[0]),
            Kind::Depthwise(d) => self.depthwise(&a.name, d, ins[0], outs[0]),
            Kind::Pool(p) => self.pool(&a.name, p, ins[0], outs[0]),
            Kind::GlobalPool(p) => self.global_pool(&a.name, p, ins[0], outs[0]),
            Kind::Binary(b) => self.binary(&a.name, b, &ins, outs[0]),
            Kind::Requantise(_) => {
                self.elements(
                    outs[0],
                    &format!("const {} x = in.read();", beat(ins[0])),
                    &format!("{}_requant(x.v[l], c, l)", a.name),
                );
            }
            Kind::Lookup(_) => {
                let at = index(&ap(ins[0].format), "x.v[l]", ins[0].format);
                self.elements(outs[0], &format!("const {} x = in.read();", beat(ins[0])), &format!("{}_table[{at}]", a.name));
            }
            Kind::Softmax(s) => self.softmax(&a.name, s, ins[0], outs[0]),
            Kind::Concat(c) => self.concat(c, outs[0]),
            Kind::Slice(s) => self.slice(s, ins[0]),
            Kind::Fork => self.fork(ins[0], outs.len()),
            Kind::Width => self.lanes(ins[0], outs[0]),
            Kind::Rearrange(r) => self.rearrange(r, ins[0], outs[0]),
        }
        self.code.close(1);
        self.code.line("");
    }

    /// Functions and tables that an actor's own function uses.
    fn helpers(&mut self, a: &Actor, ins: &[&Stream], outs: &[&Stream]) {
        let name = &a.name;
        match &a.kind {
            Kind::Mvu(m) => requant(self, name, m.requant.as_ref(), m.acc, outs[0].format, m.groups * m.rows, m.pe),
            Kind::Depthwise(d) => requant(self, name, d.requant.as_ref(), d.acc, outs[0].format, d.channels, d.pe),
            Kind::Pool(p) | Kind::GlobalPool(p) => {
                requant(self, name, p.requant.as_ref(), p.acc, outs[0].format, p.channels, p.pe)
            }
            Kind::Binary(Binary::Add { acc, requant: r, .. }) => {
                requant(self, name, r.as_ref(), *acc, outs[0].format, outs[0].shape[2], outs[0].lanes);
            }
            Kind::Binary(Binary::Mul { acc, requant: r, .. }) => {
                requant(self, name, Some(r), *acc, outs[0].format, outs[0].shape[2], outs[0].lanes);
            }
            Kind::Requantise(r) => requant(self, name, Some(r), ins[0].format, outs[0].format, outs[0].shape[2], outs[0].lanes),
            Kind::Binary(Binary::Table { table: t }) => _ = table(&mut self.weights, &format!("{name}_table"), &[t.len()], t),
            Kind::Lookup(l) => _ = table(&mut self.weights, &format!("{name}_table"), &[l.table.len()], &l.table),
            Kind::Softmax(s) => {
                let values = s.pair.as_ref().unwrap_or(&s.exp);
                let _ = table(&mut self.weights, &format!("{name}_table"), &[values.len()], values);
            }
            Kind::Source(_) | Kind::Sink(_) | Kind::Pad(_) | Kind::Window(_) => {}
            Kind::Concat(_) | Kind::Slice(_) | Kind::Fork | Kind::Width | Kind::Rearrange(_) => {}
        }
    }

    fn source(&mut self, out: &Stream) {
        self.code.pipelined("beat", "i", out.beats());
        if self.arrays {
            self.code.line(format!("{} x;", beat(out)));
            self.code.unrolled("lane", "l", out.lanes);
            self.code.line(format!("x.v[l] = from[i * {} + l];", out.lanes));
            self.code.close(1);
            self.code.line("out.write(x);");
        } else {
            self.code.line("out.write(from.read());");
        }
        self.code.close(1);
    }

    fn sink(&mut self, input: &Stream) {
        self.code.pipelined("beat", "i", input.beats());
        if self.arrays {
            self.code.line(format!("const {} x = in.read();", beat(input)));
            self.code.unrolled("lane", "l", input.lanes);
            self.code.line(format!("to[i * {} + l] = x.v[l];", input.lanes));
            self.code.close(1);
        } else {
            self.code.line("to.write(in.read());");
        }
        self.code.close(1);
    }

    fn pad(&mut self, p: &Pad, input: &Stream, out: &Stream) {
        let (i, o) = (Image::of(input), Image::of(out));
        let [top, left, ..] = p.border;
        self.code.each("row", "y", o.height);
        self.code.each("column", "x", o.width);
        self.code.pipelined("channel", "c", o.beats);
        self.code.line(format!("{} pixel;", beat(out)));
        let inside = |v: &str, before: usize, n: usize, whole: usize| {
            let low = (before > 0).then(|| format!("{v} >= {before}"));
            let high = (before + n < whole).then(|| format!("{v} < {}", before + n));
            low.into_iter().chain(high).collect::<Vec<_>>()
        };
        let mut conditions = inside("y", top, i.height, o.height);
        conditions.extend(inside("x", left, i.width, o.width));
        if conditions.is_empty() {
            self.code.line("pixel = in.read();");
        } else {
            self.code.open(format!("if ({})", conditions.join(" && ")));
            self.code.line("pixel = in.read();");
            self.code.otherwise();
            self.code.unrolled("lane", "l", out.lanes);
            self.code.line(format!("pixel.v[l] = {};", number(p.value)));
            self.code.close(2);
        }
        self.code.line("out.write(pixel);");
        self.code.close(3);
    }

    fn window(&mut self, w: &Window, input: &Stream, out: &Stream) {
        let i = Image::of(input);
        let row = i.width * i.beats;
        let [kh, kw] = w.kernel;
        let [sh, sw] = w.stride;
        let [dh, dw] = w.dilation;
        let reach = w.reach()[0];
        let [oh, ow] = w.result(i.height, i.width);
        let part = i.beats / w.groups;
        let written = ow * kh * kw * i.beats;
        let read = sh * row;
        let ty = beat(input);
        self.code.line(format!("{ty} lines[{}][{row}];", w.rows));
        self.code.line("#pragma HLS DEPENDENCE variable=lines inter false");
        self.code.each("first_row", "y", reach);
        self.code.pipelined("first_column", "i", row);
        self.code.line("lines[y][i] = in.read();");
        self.code.close(2);
        self.code.line(format!("int top = 0, fill = {};", reach % w.rows));
        self.code.each("row", "y", oh);
        self.code.line(format!("const int reads = y + 1 < {oh} ? {read} : 0;"));
        self.code.line("int x = 0, group = 0, ky = 0, kx = 0, c = 0, at = 0, line = fill;");
        self.code.open(format!("step: for (int i = 0; i < {written} || i < reads; i++)"));
        self.code.line("#pragma HLS PIPELINE II=1");
        self.code.line(format!("#pragma HLS LOOP_TRIPCOUNT min={written} max={}", written.max(read)));
        self.code.line(format!("{ty} fresh;"));
        self.code.line("if (i < reads) fresh = in.read();");
        self.code.open(format!("if (i < {written})"));
        let scaled = |v: &str, n: usize| if n == 1 { v.to_owned() } else { format!("{v} * {n}") };
        self.code.line(format!("int from = top + {};", scaled("ky", dh)));
        self.code.line(format!("if (from >= {0}) from -= {0};", w.rows));
        let column = format!("({} + {}) * {} + group * {part} + c", scaled("x", sw), scaled("kx", dw), i.beats);
        self.code.line(format!("out.write(lines[from][{column}]);"));
        let counters = [("c", part), ("kx", kw), ("ky", kh), ("group", w.groups), ("x", ow)];
        count_up(&mut self.code, &counters);
        self.code.close(1);
        self.code.open("if (i < reads)");
        self.code.line("lines[line][at] = fresh;");
        self.code.open(format!("if (++at == {row})"));
        self.code.line("at = 0;");
        self.code.line(format!("if (++line == {}) line = 0;", w.rows));
        self.code.close(3);
        self.code.line(format!("top = (top + {sh}) % {0}, fill = (fill + {sh}) % {0};", w.rows));
        self.code.close(1);
        let rest = i.height - reach - (oh - 1) * sh;
        if rest > 0 {
            self.code.pipelined("last_rows", "i", rest * row);
            self.code.line("in.read();");
            self.code.close(1);
        }
        let _ = out;
    }

    fn mvu(&mut self, name: &str, m: &Mvu, input: &Stream, out: &Stream) {
        let (folds, parts) = (m.rows / m.pe, m.cols / m.simd);
        let vectors = input.elements() / (m.groups * m.cols);
        let mut weights = Vec::with_capacity(m.weights.len());
        for group in 0..m.groups {
            for n in 0..folds {
                for s in 0..parts {
                    for p in 0..m.pe {
                        let start = (group * m.rows + n * m.pe + p) * m.cols + s * m.simd;
                        weights.extend(m.weights[start..start + m.simd].iter().map(|&w| i64::from(w)));
                    }
                }
            }
        }
        constants(self, &format!("{name}_weights"), &[m.groups * folds * parts, m.pe, m.simd], &weights);
        let bias = constants(self, &format!("{name}_bias"), &[m.groups * folds, m.pe], &m.bias);
        let c = &mut self.code;
        c.line(format!("{} kept[{parts}];", beat(input)));
        c.line(format!("{} acc[{}];", ap(m.acc), m.pe));
        c.line("#pragma HLS ARRAY_PARTITION variable=acc complete");
        c.each("pixel", "v", vectors);
        c.each("group", "g", m.groups);
        c.each("row", "n", folds);
        c.pipelined("column", "s", parts);
        c.line(format!("{} x;", beat(input)));
        c.line("if (n == 0) x = kept[s] = in.read();");
        c.line("else x = kept[s];");
        c.line(format!("{} y;", beat(out)));
        c.unrolled("pe", "p", m.pe);
        let at = if m.groups == 1 { "n".to_owned() } else { format!("(g * {folds} + n)") };
        c.line(format!("{} sum = {}({name}_bias[{}][p]);", ap(m.acc), ap(bias), at.trim_matches(['(', ')'])));
        c.line("if (s != 0) sum = acc[p];");
        c.unrolled("simd", "k", m.simd);
        c.line(format!("sum += x.v[k] * {}({name}_weights[{at} * {parts} + s][p][k]);", ap(m.weight)));
        c.close(1);
        c.line("acc[p] = sum;");
        c.line(format!("y.v[p] = {name}_requant(sum, {}, p);", at.trim_matches(['(', ')'])));
        c.close(1);
        c.line(format!("if (s == {}) out.write(y);", parts - 1));
        c.close(4);
    }

    fn depthwise(&mut self, name: &str, d: &Depthwise, input: &Stream, out: &Stream) {
        let folds = d.channels / d.pe;
        let order = (0..folds * d.taps).flat_map(|i| (0..d.pe).map(move |p| (i / d.taps * d.pe + p, i % d.taps)));
        let weights: Vec<i64> = order.map(|(c, t)| i64::from(d.weights[c * d.taps + t])).collect();
        constants(self, &format!("{name}_weights"), &[folds * d.taps, d.pe], &weights);
        let bias = constants(self, &format!("{name}_bias"), &[folds, d.pe], &d.bias);
        let start = format!("{}({name}_bias[c][p])", ap(bias));
        let add = format!("sum += x.v[p] * {}({name}_weights[c * {} + t][p]);", ap(d.weight), d.taps);
        self.taps(name, d.acc, d.pe, [out.elements() / d.channels, folds, d.taps], &start, &add, input, out);
    }

    /// Accumulation over the taps of windows by channel.
    #[allow(clippy::too_many_arguments, reason = "parts of one text")]
    fn taps(
        &mut self,
        name: &str,
        acc: Format,
        pe: usize,
        loops: [usize; 3],
        start: &str,
        add: &str,
        input: &Stream,
        out: &Stream,
    ) {
        let [pixels, folds, taps] = loops;
        let c = &mut self.code;
        c.line(format!("{} acc[{pe}];", ap(acc)));
        c.line("#pragma HLS ARRAY_PARTITION variable=acc complete");
        c.each("pixel", "v", pixels);
        c.each("channel", "c", folds);
        c.pipelined("tap", "t", taps);
        c.line(format!("const {} x = in.read();", beat(input)));
        c.line(format!("{} y;", beat(out)));
        c.unrolled("pe", "p", pe);
        c.line(format!("{} sum = {start};", ap(acc)));
        c.line("if (t != 0) sum = acc[p];");
        c.line(add);
        c.line("acc[p] = sum;");
        c.line(format!("y.v[p] = {name}_requant(sum, c, p);"));
        c.close(1);
        c.line(format!("if (t == {}) out.write(y);", taps - 1));
        c.close(3);
    }

    fn pool(&mut self, name: &str, p: &Pool, input: &Stream, out: &Stream) {
        let (start, add) = combine(p, "x.v[p]");
        self.taps(name, p.acc, p.pe, [out.elements() / p.channels, p.channels / p.pe, p.taps], &start, add, input, out);
    }

    fn global_pool(&mut self, name: &str, p: &Pool, input: &Stream, out: &Stream) {
        let folds = p.channels / p.pe;
        let (start, add) = combine(p, "x.v[p]");
        let c = &mut self.code;
        c.line(format!("{} acc[{folds}][{}];", ap(p.acc), p.pe));
        c.line("#pragma HLS ARRAY_PARTITION variable=acc dim=2 complete");
        c.each("pixel", "t", p.taps);
        c.pipelined("channel", "c", folds);
        c.line(format!("const {} x = in.read();", beat(input)));
        c.line(format!("{} y;", beat(out)));
        c.unrolled("pe", "p", p.pe);
        c.line(format!("{} sum = {start};", ap(p.acc)));
        c.line("if (t != 0) sum = acc[c][p];");
        c.line(add);
        c.line("acc[c][p] = sum;");
        c.line(format!("y.v[p] = {name}_requant(sum, c, p);"));
        c.close(1);
        c.line(format!("if (t == {}) out.write(y);", p.taps - 1));
        c.close(2);
    }

    /// A beat in, a beat out: `value` of lane `l` of channels `c`, after `read`.
    fn elements(&mut self, out: &Stream, read: &str, value: &str) {
        let o = Image::of(out);
        let c = &mut self.code;
        c.each("pixel", "i", o.pixels());
        c.pipelined("channel", "c", o.beats);
        c.line(read);
        c.line(format!("{} y;", beat(out)));
        c.unrolled("lane", "l", out.lanes);
        c.line(format!("y.v[l] = {value};"));
        c.close(1);
        c.line("out.write(y);");
        c.close(2);
    }

    fn binary(&mut self, name: &str, b: &Binary, ins: &[&Stream], out: &Stream) {
        let read = format!("const {} a = in0.read();\n        const {} b = in1.read();", beat(ins[0]), beat(ins[1]));
        let constant = |v: i64| format!("{}({})", ap(Format::of(v.min(0), v.max(0))), number(v));
        let value = match b {
            Binary::Add { a_mul, b_mul, offset, acc, .. } => {
                let term = |x: &str, m: i64| if m == 1 { x.to_owned() } else { format!("{x} * {}", constant(m)) };
                let sum = format!("{} + {}", term("a.v[l]", *a_mul), term("b.v[l]", *b_mul));
                let sum = if *offset == 0 { sum } else { format!("{sum} + {}", constant(*offset)) };
                format!("{name}_requant({}({sum}), c, l)", ap(*acc))
            }
            Binary::Mul { a_zero, b_zero, acc, .. } => {
                let term = |x: &str, z: i64| if z == 0 { x.to_owned() } else { format!("({x} - {})", constant(z)) };
                format!("{name}_requant({}({} * {}), c, l)", ap(*acc), term("a.v[l]", *a_zero), term("b.v[l]", *b_zero))
            }
            Binary::Table { .. } => {
                let at = |x: &str, s: &Stream| index(&ap(s.format), x, s.format);
                format!("{name}_table[{} * {} + {}]", at("a.v[l]", ins[0]), 1u64 << ins[1].format.bits, at("b.v[l]", ins[1]))
            }
        };
        self.elements(out, &read, &value);
    }

    fn softmax(&mut self, name: &str, s: &Softmax, input: &Stream, out: &Stream) {
        let beats = s.channels / input.lanes;
        let pixels = input.elements() / s.channels;
        let c = &mut self.code;
        c.line(format!("int x[{}];", s.channels));
        c.line(format!("#pragma HLS ARRAY_PARTITION variable=x cyclic factor={}", input.lanes));
        c.each("pixel", "i", pixels);
        c.line(format!("int most = {};", number(input.format.min())));
        c.pipelined("load", "n", beats);
        c.line(format!("const {} fresh = in.read();", beat(input)));
        c.unrolled("load_lane", "l", input.lanes);
        c.line("const int v = fresh.v[l].to_int();");
        c.line(format!("x[n * {} + l] = v;", input.lanes));
        c.line("if (v > most) most = v;");
        c.close(2);
        if s.pair.is_none() {
            let (_, sum) = holder(&s.exp.iter().map(|&e| e.saturating_mul(s.channels as i64)).collect::<Vec<_>>());
            let last = s.exp.len() - 1;
            c.line(format!("{} sum = 0;", ap(sum)));
            c.pipelined("add", "n", beats);
            c.unrolled("add_lane", "l", input.lanes);
            c.line(format!("const int d = most - x[n * {} + l];", input.lanes));
            c.line(format!("sum += {name}_table[d < {last} ? d : {last}];"));
            c.close(2);
        }
        c.pipelined("store", "n", beats);
        c.line(format!("{} y;", beat(out)));
        c.unrolled("store_lane", "l", out.lanes);
        let at = format!("n * {} + l", input.lanes);
        if let Some(pair) = &s.pair {
            c.line(format!("y.v[l] = {name}_table[x[{at}] - x[1 - ({at})] + {}];", (pair.len() - 1) / 2));
        } else {
            let last = s.exp.len() - 1;
            c.line(format!("const int d = most - x[{at}];"));
            c.line(format!("const uint64_t e = {name}_table[d < {last} ? d : {last}], total = sum.to_uint64();"));
            c.line(format!("int64_t q = (int64_t)((e * {} + total / 2) / total) + {};", s.gain, number(s.zero)));
            c.line(format!("if (q < {0}) q = {0};", number(s.min)));
            c.line(format!("if (q > {0}) q = {0};", number(s.max)));
            c.line("y.v[l] = q;");
        }
        c.close(1);
        c.line("out.write(y);");
        c.close(2);
    }

    fn concat(&mut self, p: &Concat, out: &Stream) {
        let beats: Vec<usize> = p.chunks.iter().map(|n| n / out.lanes).collect();
        let total: usize = beats.iter().sum();
        let c = &mut self.code;
        c.each("turn", "r", p.repeats);
        c.pipelined("beat", "i", total);
        let mut end = 0;
        for (k, n) in beats.iter().enumerate() {
            end += n;
            let name = if beats.len() == 1 { "in".to_owned() } else { format!("in{k}") };
            let test = match (k, k + 1 == beats.len()) {
                (0, true) => String::new(),
                (0, false) => format!("if (i < {end}) "),
                (_, false) => format!("else if (i < {end}) "),
                (_, true) => "else ".to_owned(),
            };
            c.line(format!("{test}out.write({name}.read());"));
        }
        c.close(2);
    }

    fn slice(&mut self, s: &Slice, input: &Stream) {
        let period = s.period / input.lanes;
        let (begin, end) = (s.begin / input.lanes, (s.begin + s.count) / input.lanes);
        let c = &mut self.code;
        c.each("turn", "r", input.beats() / period);
        c.pipelined("beat", "i", period);
        c.line(format!("const {} x = in.read();", beat(input)));
        c.line(format!("if (i >= {begin} && i < {end}) out.write(x);"));
        c.close(2);
    }

    fn fork(&mut self, input: &Stream, copies: usize) {
        self.code.pipelined("beat", "i", input.beats());
        self.code.line(format!("const {} x = in.read();", beat(input)));
        for k in 0..copies {
            let name = if copies == 1 { "out".to_owned() } else { format!("out{k}") };
            // The types differ in name only.
            let ty = format!("{name}.write(x);");
            self.code.line(ty);
        }
        self.code.close(1);
    }

    fn lanes(&mut self, input: &Stream, out: &Stream) {
        let (a, b) = (input.lanes, out.lanes);
        let c = &mut self.code;
        if a >= b {
            c.line(format!("{} x;", beat(input)));
            c.each("beat", "i", input.beats());
            c.pipelined("part", "k", a / b);
            c.line("if (k == 0) x = in.read();");
            c.line(format!("{} y;", beat(out)));
            c.unrolled("lane", "l", b);
            c.line(format!("y.v[l] = x.v[k * {b} + l];"));
            c.close(1);
            c.line("out.write(y);");
        } else {
            c.line(format!("{} y;", beat(out)));
            c.each("beat", "i", out.beats());
            c.pipelined("part", "k", b / a);
            c.line(format!("const {} x = in.read();", beat(input)));
            c.unrolled("lane", "l", a);
            c.line(format!("y.v[k * {a} + l] = x.v[l];"));
            c.close(1);
            c.line(format!("if (k == {}) out.write(y);", b / a - 1));
        }
        c.close(2);
    }

    fn rearrange(&mut self, r: &Rearrange, input: &Stream, out: &Stream) {
        let lanes = input.lanes;
        let read = r.block / lanes;
        // In beats: the last loop goes from beat to beat.
        let last = r.loops.len().saturating_sub(1);
        let loops: Vec<(usize, usize)> = r
            .loops
            .iter()
            .enumerate()
            .map(|(k, &(n, d))| if k == last && lanes > 1 { (n / lanes, 1) } else { (n, d / lanes) })
            .collect();
        let written: usize = loops.iter().map(|l| l.0).product();
        let blocks = input.elements() / r.block;
        let c = &mut self.code;
        c.line(format!("{} blocks[2][{read}];", beat(input)));
        c.line("#pragma HLS ARRAY_PARTITION variable=blocks dim=1 complete");
        c.line("#pragma HLS DEPENDENCE variable=blocks inter false");
        c.each("block", "b", blocks + 1);
        c.line(format!("const int reads = b < {blocks} ? {read} : 0, writes = b > 0 ? {written} : 0;"));
        let names: Vec<String> = (0..loops.len()).map(|k| format!("i{k}")).collect();
        if !names.is_empty() {
            c.line(format!("int {};", names.iter().map(|n| format!("{n} = 0")).collect::<Vec<_>>().join(", ")));
        }
        c.open("step: for (int i = 0; i < reads || i < writes; i++)");
        c.line("#pragma HLS PIPELINE II=1");
        c.line(format!("#pragma HLS LOOP_TRIPCOUNT min={} max={}", read.min(written), read.max(written)));
        c.line("if (i < reads) blocks[b % 2][i] = in.read();");
        c.open("if (i < writes)");
        let at: Vec<String> =
            loops.iter().zip(&names).map(|(l, n)| if l.1 == 1 { n.clone() } else { format!("{n} * {}", l.1) }).collect();
        c.line(format!("out.write(blocks[1 - b % 2][{}]);", if at.is_empty() { "0".to_owned() } else { at.join(" + ") }));
        let counters: Vec<(&str, usize)> = names.iter().zip(&loops).rev().map(|(n, l)| (n.as_str(), l.0)).collect();
        count_up(c, &counters);
        c.close(3);
        let _ = out;
    }
}

/// The parameter of an input or output of the design.
pub fn port(s: &Stream, name: &str, array: bool, input: bool) -> String {
    match array {
        true => format!("{}{} {name}[{}]", if input { "const " } else { "" }, ap(s.format), s.elements()),
        false => format!("hls::stream<{}> &{name}", beat(s)),
    }
}

/// Where a table has the entry of a value.
fn index(ty: &str, x: &str, f: Format) -> String {
    let _ = ty;
    match f.min() {
        0 => format!("{x}.to_int()"),
        least => format!("({x}.to_int() + {})", -least),
    }
}

/// What sums or maxima start from, and how an element joins.
fn combine(p: &Pool, x: &str) -> (String, &'static str) {
    match p.op {
        PoolOp::Max => (x.to_owned(), "if (x.v[p] > sum) sum = x.v[p];"),
        PoolOp::Sum => (number(p.bias), "sum += x.v[p];"),
    }
}

/// Nested counters, the innermost first, as a chain of conditions.
fn count_up(c: &mut Code, counters: &[(&str, usize)]) {
    let live: Vec<&(&str, usize)> = counters.iter().filter(|c| c.1 > 1).collect();
    for (k, (name, n)) in live.iter().enumerate() {
        if k + 1 == live.len() {
            c.line(format!("++{name};"));
        } else {
            c.open(format!("if (++{name} == {n})"));
            c.line(format!("{name} = 0;"));
        }
    }
    c.close(live.len().saturating_sub(1));
}
