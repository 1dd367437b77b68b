//! What a streaming design is: actors, streams between them, ports to the outside. Plain data.
//!
//! # Streams
//! A stream carries *frames*, one a run of the model (one item of the batch). A frame is `h * w * c` integers of one [`Format`] in the
//! order pixel by pixel, row-major, channels innermost (`h, w, c`; a vector is `1, 1, c`), or what the actor that makes it says (the
//! windows of [`Window`]). It moves in *beats* of [`Stream::lanes`] neighbouring integers; lane 0 is the first of them and takes the
//! lowest bits of a packed beat. Lanes divide the channels (of a window: those of a group), so no beat crosses a pixel.
//! A stream has one producer and one consumer; [`Kind::Fork`] makes copies. The real number that an integer `q` stands for is
//! `(q - zero) * scale`; actors never need it.
//!
//! # Actors
//! An actor is a loop that runs once for each frame and then starts again. In each iteration it reads at most one beat of each input and
//! then writes at most one beat to each output; which ones depends on the iteration only, never on data. Reads and writes block. One
//! iteration takes one cycle (initiation interval 1). The doc of each kind says its iterations; `infc_stream::schedule` has them
//! as code, the cycle simulation and the FIFO depths come from there.

/// Index into [`Design::actors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ActorId(pub u32);

/// Index into [`Design::streams`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u32);

impl ActorId {
    /// As index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}
impl StreamId {
    /// As index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A two's complement or unsigned integer of so many bits (1 to 64).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Format {
    /// Two's complement.
    pub signed: bool,
    /// Width.
    pub bits: u32,
}

impl Format {
    /// The narrowest format that holds `least..=most`.
    pub fn of(least: i64, most: i64) -> Format {
        let signed = least < 0;
        let size = |v: i64| 64 - if v < 0 { !v } else { v }.leading_zeros();
        let bits = (size(least).max(size(most)) + u32::from(signed)).max(1);
        Format { signed, bits }
    }
    /// Least value.
    pub fn min(self) -> i64 {
        if self.signed { -1i64 << (self.bits - 1) } else { 0 }
    }
    /// Greatest value.
    pub fn max(self) -> i64 {
        let size = self.bits - u32::from(self.signed);
        if size >= 63 { i64::MAX } else { (1i64 << size) - 1 }
    }
}

/// A FIFO between two actors.
#[derive(Clone, Debug, PartialEq)]
pub struct Stream {
    /// An identifier in lower case, unique in the design: `conv1_window`.
    pub name: String,
    /// Format of each element.
    pub format: Format,
    /// Elements a beat.
    pub lanes: usize,
    /// Height, width and channels of a frame. Of a window's output: the elements of all its windows are `h * w * c` with `h`, `w` those
    /// of the result and `c` the elements of one window.
    pub shape: [usize; 3],
    /// What one step of the integer is as a real number; `None` for accumulators, whose scale may differ by channel.
    pub scale: Option<f32>,
    /// The integer that stands for 0.
    pub zero: i64,
    /// Who writes it.
    pub from: ActorId,
    /// Who reads it.
    pub to: ActorId,
    /// Beats that the FIFO holds. At least 2.
    pub depth: usize,
    /// The fewest beats with which no branch that meets another one again can stop the design: with less it deadlocks. 1 where
    /// there is no such branch. Always `<= depth` after FIFO sizing.
    pub bound: usize,
}

impl Stream {
    /// Elements of a frame.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
    /// Beats of a frame.
    pub fn beats(&self) -> usize {
        self.elements() / self.lanes
    }
    /// Bits of a beat.
    pub fn width(&self) -> usize {
        self.lanes * self.format.bits as usize
    }
}

/// A process.
#[derive(Clone, Debug, PartialEq)]
pub struct Actor {
    /// An identifier in lower case, unique in the design: `conv1_mvu`.
    pub name: String,
    /// The nodes of the model it stands for, for reports: `Conv 'conv1' (opset 13)`.
    pub origin: String,
    /// What it does.
    pub kind: Kind,
    /// Streams it reads, in the order of its doc.
    pub inputs: Vec<StreamId>,
    /// Streams it writes.
    pub outputs: Vec<StreamId>,
}

/// An input or output of the model, and how its tensor lies in the stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// The model's name of the tensor.
    pub name: String,
    /// The tensor's dims in the model, the batch (which is frames) as 1.
    pub dims: Vec<usize>,
    /// The model's dtype: `f32` if the host quantises (or dequantises) by `scale` and `zero`, else that of the integers.
    pub dtype: infc_ir::DType,
    /// The stream.
    pub stream: StreamId,
    /// Where the elements of the stream are in the row-major tensor: a loop nest, outermost first, of extents and distances. The
    /// stream's element number `i` is element `sum index * distance` of the tensor.
    pub order: Vec<(usize, usize)>,
    /// If the model's tensor is real numbers: an input is stored as `saturate(rint(x / scale) + zero)` (ONNX QuantizeLinear, limited to
    /// `[min, max]`), an output is `(q - zero) * scale`, both in f32.
    pub scale: Option<f32>,
    /// See `scale`.
    pub zero: i64,
    /// Least and greatest integer of an input.
    pub limits: [i64; 2],
}

impl Port {
    /// For each element of the stream, its place in the row-major tensor.
    pub fn places(&self) -> Vec<usize> {
        nest(&self.order)
    }
}

/// The offsets that a loop nest of (extent, distance) visits, in order.
pub fn nest(loops: &[(usize, usize)]) -> Vec<usize> {
    let mut out = vec![0];
    for &(extent, distance) in loops {
        out = out.iter().flat_map(|&at| (0..extent).map(move |i| at + i * distance)).collect();
    }
    out
}

/// A streaming design.
#[derive(Clone, Debug, PartialEq)]
pub struct Design {
    /// The model's name, as an identifier.
    pub name: String,
    /// Processes, producers before consumers.
    pub actors: Vec<Actor>,
    /// FIFOs.
    pub streams: Vec<Stream>,
    /// The model's inputs; number `i` is read by the [`Kind::Source`] with that index.
    pub inputs: Vec<Port>,
    /// The model's outputs; number `i` is written by the [`Kind::Sink`] with that index.
    pub outputs: Vec<Port>,
}

impl Design {
    /// The data of an actor.
    pub fn actor(&self, a: ActorId) -> &Actor {
        &self.actors[a.index()]
    }
    /// The data of a stream.
    pub fn stream(&self, s: StreamId) -> &Stream {
        &self.streams[s.index()]
    }
    /// Input `i` of an actor.
    pub fn input(&self, a: &Actor, i: usize) -> &Stream {
        self.stream(a.inputs[i])
    }
    /// Output `i` of an actor.
    pub fn output(&self, a: &Actor, i: usize) -> &Stream {
        self.stream(a.outputs[i])
    }
}

/// What an actor does. `lanes` in the docs are those of its streams.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// Input number `.0` of the model: no stream in, one out. One beat an iteration.
    Source(usize),
    /// Output number `.0` of the model: one stream in, none out. One beat an iteration.
    Sink(usize),
    /// Puts a border around the image. 1 in, 1 out.
    Pad(Pad),
    /// Sliding windows over the image, from a line buffer. 1 in, 1 out.
    Window(Window),
    /// Products of a matrix with the vectors of the input. 1 in, 1 out.
    Mvu(Mvu),
    /// One filter a channel, on the windows of the input. 1 in, 1 out.
    Depthwise(Depthwise),
    /// Largest element, or sum, of each window, by channel. 1 in, 1 out.
    Pool(Pool),
    /// Largest element, or sum, of the whole image, by channel. 1 in, 1 out.
    GlobalPool(Pool),
    /// Combines two streams element by element. 2 in, 1 out.
    Binary(Binary),
    /// Puts accumulators into a narrow format, element by element. 1 in, 1 out.
    Requantise(Requant),
    /// A function of one narrow integer, as a table, element by element. 1 in, 1 out.
    Lookup(Lookup),
    /// Softmax over all channels of a pixel. 1 in, 1 out.
    Softmax(Softmax),
    /// Puts frames together along an axis. n in, 1 out.
    Concat(Concat),
    /// Takes a range along an axis. 1 in, 1 out.
    Slice(Slice),
    /// Copies the input to each output. 1 in, n out. One beat an iteration: it is read, then written to all.
    Fork,
    /// Changes the number of lanes; one of the two numbers divides the other. 1 in, 1 out. To fewer (`n` times): iteration `i` of
    /// `n` of an input beat reads it if `i == 0`, and writes lanes `[i * out, (i + 1) * out)`. To more (`n` times): each iteration reads
    /// one beat, the last of `n` writes.
    Width,
    /// Stores blocks and writes them in another order. 1 in, 1 out.
    Rearrange(Rearrange),
}

/// A border of constant elements.
///
/// For each pixel of the result, for each beat of its channels: one iteration, which reads if the pixel is not on the border, and
/// writes what was read, else a beat of `value`.
#[derive(Clone, Debug, PartialEq)]
pub struct Pad {
    /// Rows above, columns left, rows below, columns right.
    pub border: [usize; 4],
    /// The element of the border (the zero point; for MaxPool the least value).
    pub value: i64,
}

/// Sliding windows without padding. Input `h, w, c`, output `oh, ow, kh * kw * c`.
///
/// Output order: for each output row, output column, *group* of channels, kernel row, kernel column, beat of the group's channels.
/// One group: the whole window for a [`Mvu`]. `c / lanes` groups: the taps of one beat of channels after another, for [`Depthwise`] and
/// [`Pool`].
///
/// Iterations: first `((kh - 1) * dh + 1)` rows of the input are read, one beat each. Then for each output row `r`, `max(e, n)` iterations with
/// `e = ow * kh * kw * c / lanes` beats to write and `n = sh * w * c / lanes` beats to read (the rows that the next output row needs more;
/// 0 for the last output row): iteration `i` reads if `i < n` and writes if `i < e`. Last, rows of the input that no window
/// needs are read and dropped, one beat each. Beats that are read go to the line buffer only after the write of the same
/// iteration: the buffer holds `rows` rows, and row `y` of the input lies in row `y % rows` of it.
/// (If `sh` is larger than the kernel's reach, rows between windows are read and never used.)
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// Kernel height and width.
    pub kernel: [usize; 2],
    /// Strides, down and right.
    pub stride: [usize; 2],
    /// Dilations, down and right.
    pub dilation: [usize; 2],
    /// Groups of channels, which divide `c`.
    pub groups: usize,
    /// Rows of the line buffer: `(kh - 1) * dh + 1 + sh`.
    pub rows: usize,
}

impl Window {
    /// Rows and columns that one window reaches over.
    pub fn reach(&self) -> [usize; 2] {
        [0, 1].map(|a| (self.kernel[a] - 1) * self.dilation[a] + 1)
    }
    /// Rows and columns of the result.
    pub fn result(&self, h: usize, w: usize) -> [usize; 2] {
        let reach = self.reach();
        [(h - reach[0]) / self.stride[0] + 1, (w - reach[1]) / self.stride[1] + 1]
    }
}

/// Matrix-vector unit: `y[m] = requant(bias[m] + sum_k weight[m][k] * x[k])`.
///
/// Input: vectors of `cols` elements, in beats of `simd`; output: `rows` elements a vector, in beats of `pe`. Vector number `v` uses the
/// matrix of group `v % groups`; the output of a pixel is that of its groups one after the other.
///
/// Iterations, for each vector: for each fold `n` of `rows / pe`, for each fold `s` of `cols / simd`: reads a beat (and keeps it for the other
/// `n`) if `n == 0`, multiplies `pe * simd` weights, and writes if `s` is the last.
#[derive(Clone, Debug, PartialEq)]
pub struct Mvu {
    /// Matrices, one a group.
    pub groups: usize,
    /// Output elements of one matrix.
    pub rows: usize,
    /// Input elements of one matrix.
    pub cols: usize,
    /// Output elements made at once; divides `rows`. The lanes of the output.
    pub pe: usize,
    /// Products of one output element at once; divides `cols`. The lanes of the input.
    pub simd: usize,
    /// `[group][row][column]`, columns in the order of the stream; the weights' zero points are subtracted already.
    pub weights: Vec<i32>,
    /// Narrowest format of the weights.
    pub weight: Format,
    /// `[group][row]`, with the zero point of the input accounted for: `x` is taken as it is stored.
    pub bias: Vec<i64>,
    /// Holds every partial sum, in any order, with the bias.
    pub acc: Format,
    /// How accumulators become outputs (channel `group * rows + row`); `None`: they are the output.
    pub requant: Option<Requant>,
}

/// Depthwise unit: `y[c] = requant(bias[c] + sum_t weight[c][t] * x[t][c])`.
///
/// Input: the output of a [`Window`] with `c / pe` groups, in beats of `pe`. Iterations: for each output pixel, each fold of `pe` channels, each tap: reads;
/// the last tap writes.
#[derive(Clone, Debug, PartialEq)]
pub struct Depthwise {
    /// Channels.
    pub channels: usize,
    /// Elements of a window of one channel.
    pub taps: usize,
    /// Channels at once; divides `channels`. The lanes of both streams.
    pub pe: usize,
    /// `[channel][tap]`.
    pub weights: Vec<i32>,
    /// Narrowest format of the weights.
    pub weight: Format,
    /// `[channel]`.
    pub bias: Vec<i64>,
    /// Holds every partial sum.
    pub acc: Format,
    /// How accumulators become outputs.
    pub requant: Option<Requant>,
}

/// How a pool combines elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolOp {
    /// The largest.
    Max,
    /// `bias +` their sum; an average is the requantised sum.
    Sum,
}

/// Pooling by channel.
///
/// [`Kind::Pool`]: input, output and iterations as [`Depthwise`] (`taps` elements each). [`Kind::GlobalPool`]: `taps = h * w`, the input is the image
/// itself; each iteration reads a beat, those of the last pixel also write.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// What is done.
    pub op: PoolOp,
    /// Channels.
    pub channels: usize,
    /// Elements of one result.
    pub taps: usize,
    /// Channels at once. The lanes of both streams.
    pub pe: usize,
    /// What sums start from (the zero point times the taps, negative).
    pub bias: i64,
    /// Holds every partial result.
    pub acc: Format,
    /// How results become outputs; `None`: they are the output.
    pub requant: Option<Requant>,
}

/// Two streams to one, element by element. Each iteration reads a beat of each and writes one.
#[derive(Clone, Debug, PartialEq)]
pub enum Binary {
    /// `requant(a_mul * a + b_mul * b + offset)`; addition with alignment of scales.
    Add {
        /// Factor of input 0.
        a_mul: i64,
        /// Factor of input 1.
        b_mul: i64,
        /// Accounts for the zero points.
        offset: i64,
        /// Holds the sum.
        acc: Format,
        /// How sums become outputs; `None`: they are the output.
        requant: Option<Requant>,
    },
    /// `requant((a - a_zero) * (b - b_zero))`.
    Mul {
        /// Zero point of input 0.
        a_zero: i64,
        /// Zero point of input 1.
        b_zero: i64,
        /// Holds the product.
        acc: Format,
        /// How products become outputs.
        requant: Requant,
    },
    /// `table[(a - a.format.min()) * 2^bits(b) + (b - b.format.min())]`: where no arithmetic was shown to be equal.
    Table {
        /// One entry a pair.
        table: Vec<i64>,
    },
}

/// From an accumulator to a narrow integer, by channel. All forms of one value are equal for every accumulator that can occur.
#[derive(Clone, Debug, PartialEq)]
pub struct Requant {
    /// Format of the result.
    pub out: Format,
    /// Least result (an activation may make it more than the format's).
    pub min: i64,
    /// Greatest result.
    pub max: i64,
    /// Its hardware. Channels stand in the order of the stream; one entry serves all.
    pub form: RequantForm,
    /// What it means: `min(max(saturate(rint_half_even(f32(acc) * m) + zero), min), max)`. `None` where the form itself was compared with
    /// the model for all operands (sums and products of two streams).
    pub law: Option<Law>,
    /// Accumulators that can occur, by channel (or one entry for all): least and greatest.
    pub range: Vec<[i64; 2]>,
}

/// How a requantisation is computed.
#[derive(Clone, Debug, PartialEq)]
pub enum RequantForm {
    /// `clamp((acc * mul[c] + add[c]) >> shift, min, max)`, the shift arithmetic, the zero point in `add`. With `half_even` it is
    /// `clamp(round(acc * mul[c]) + add[c], min, max)`, where `round(v) = (v + half - 1 + ((v >> shift) & 1)) >> shift` with `half = 1 << (shift - 1)`
    /// is `v / 2^shift` to nearest, ties to even (`v` if `shift` is 0).
    MultiplyShift {
        /// Factor, positive, one a channel or one for all.
        mul: Vec<i64>,
        /// Summand, as many as factors.
        add: Vec<i64>,
        /// Bits.
        shift: u32,
        /// Holds `acc * mul + add`; `acc * mul + half` if `half_even`.
        wide: Format,
        /// The shift rounds to nearest, ties to even, and the summand comes after it; else it rounds down.
        half_even: bool,
    },
    /// The product rounded as a f32 is, then to an integer: `clamp(round(v << drop, shift[c]) + add, min, max)` with `p = acc * mul[c]`,
    /// `drop = max(0, n - 24)` for the `n` bits of `|p|` (its highest bit that is set is `n - 1`), `v = round(p, drop)`, and `round(x, s)`, that is `x / 2^s` to nearest,
    /// ties to even: `(x + (1 << (s - 1)) - 1 + ((x >> s) & 1)) >> s` (`x` if `s` is 0). Taken where the roundings of the definition put steps
    /// where no straight line has them.
    Float {
        /// Factor of at most 24 bits, not negative, one a channel or one for all.
        mul: Vec<i64>,
        /// Bits, one a factor, at most 60.
        shift: Vec<u32>,
        /// The zero point.
        add: i64,
        /// Holds `acc * mul` and the sums in `round`.
        wide: Format,
    },
    /// `min + the number of thresholds that are <= acc`: for each channel (or one list for all) `max - min` ascending thresholds. A threshold
    /// that no accumulator reaches is one more than the greatest that can occur.
    Thresholds(Vec<Vec<i64>>),
}

/// The definition of a requantisation, in real numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Law {
    /// Multiplier, one a channel or one for all.
    pub m: Vec<f32>,
    /// Added after rounding.
    pub zero: i64,
}

/// A table: `table[x - in.format.min()]`. Each iteration reads and writes a beat.
#[derive(Clone, Debug, PartialEq)]
pub struct Lookup {
    /// `2^bits` entries.
    pub table: Vec<i64>,
}

/// Softmax over the channels of a pixel.
///
/// Iterations for each pixel, with `n = channels / lanes`: `n` that read (and find the maximum), `n` that add up, `n` that write.
/// With `d[c] = max - x[c]` and `e[c] = exp[min(d[c], exp.len() - 1)]`, the result is `clamp((e[c] * gain + sum / 2) / sum + zero, min, max)` (rounding down, all
/// positive before the zero point).
#[derive(Clone, Debug, PartialEq)]
pub struct Softmax {
    /// Elements of one softmax.
    pub channels: usize,
    /// Fixed-point powers: entry `d` is `rint(exp(-d * scale) * (2^18 - 1))`.
    pub exp: Vec<i64>,
    /// `rint(1 / output scale)`.
    pub gain: i64,
    /// Zero point of the result.
    pub zero: i64,
    /// Least result.
    pub min: i64,
    /// Greatest result.
    pub max: i64,
    /// For two channels where it was shown to be equal to the real softmax for every pair: the result of a channel by the difference
    /// of it and the other one, `pair[x[c] - x[1 - c] + (pair.len() - 1) / 2]`, used in place of all of the above.
    pub pair: Option<Vec<i64>>,
}

/// Concatenation: `repeats` times, `chunks[0]` beats of input 0, then `chunks[1]` of input 1, and so on. Each iteration reads a beat of one input and writes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Concat {
    /// Pixels (along channels), rows (along columns) or 1 (along rows).
    pub repeats: usize,
    /// Elements a turn, by input; beats are that by the lanes.
    pub chunks: Vec<usize>,
}

/// A range: of each `period` elements, `count` from `begin` on. Each iteration reads a beat and writes it if it is within.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// Elements of a turn.
    pub period: usize,
    /// First that is taken.
    pub begin: usize,
    /// How many are taken.
    pub count: usize,
}

/// Blocks in another order: nearest-neighbour resize, depth to space, transposition.
///
/// The frame is blocks of `block` elements. A block is stored, then written as `loops` says: the offsets in it that a loop nest of (extent, distance),
/// outermost first, visits. More than one lane only if the last loop has distance 1 and the lanes divide its extent and the distances of all others.
/// Two buffers: while block `b` is written, block `b + 1` is read. Iterations: for each `b` of `0..=blocks`, `max(n, e)`, with `n` the beats of a block if `b < blocks`, else 0, and `e` the beats
/// that are written of one if `b > 0`, else 0; iteration `i` reads if `i < n` (into block `b`) and writes if `i < e` (of block `b - 1`).
#[derive(Clone, Debug, PartialEq)]
pub struct Rearrange {
    /// Elements of a block.
    pub block: usize,
    /// Order of writing.
    pub loops: Vec<(usize, usize)>,
}
