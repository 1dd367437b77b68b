//! Networks for tests: a builder with the layers that models are made of, and random networks from a seed.
#![allow(dead_code)] // not every test uses every layer

use infc_compress::data::Random;
use infc_ir::graph::{Graph, SourceNode, Value};
use infc_ir::op::*;
use infc_ir::{DType, Expr, Tensor, Type};

/// A network as it grows.
pub struct Net {
    pub g: Graph,
    pub random: Random,
    count: usize,
}

impl Net {
    /// With one input of these dims; a dim of 0 is the symbol `n`.
    pub fn new(dims: &[i64], seed: u64) -> Net {
        let mut g = Graph::new("net");
        g.opsets.push((String::new(), 21));
        let dims: Vec<Expr> = dims.iter().map(|&d| if d == 0 { Expr::sym("n") } else { Expr::int(d) }).collect();
        g.add_param(Graph::MAIN, Type::tensor(DType::F32, dims), "x");
        Net { g, random: Random(seed), count: 0 }
    }
    pub fn input(&self) -> Value {
        self.g.inputs()[0]
    }
    pub fn finish(mut self, outputs: &[Value]) -> Graph {
        for (k, &v) in outputs.iter().enumerate() {
            self.g.values[v.index()].name = format!("y{k}");
        }
        self.g.regions[0].results = outputs.to_vec();
        self.g
    }
    pub fn dims(&self, v: Value) -> Vec<i64> {
        self.g.ty(v).as_tensor().unwrap().dims.iter().map(|d| d.known().unwrap_or(0)).collect()
    }
    pub fn below(&mut self, n: usize) -> usize {
        (self.random.bits() % n as u64) as usize
    }
    pub fn nodes(&mut self, op: impl Into<Op>, inputs: &[Value], outputs: usize) -> Vec<Value> {
        let op = op.into();
        let name = format!("{}{}", op.name(), self.count);
        self.count += 1;
        let source = self.g.add_source(SourceNode { name, op: op.name().to_owned(), opset: 21 });
        let mut b = Builder::new(&mut self.g, [source].into());
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        let out = b.node(op, &inputs, vec![], outputs).unwrap();
        let made = b.nodes;
        self.g.regions[0].nodes.extend(made);
        out
    }
    pub fn op(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Value {
        self.nodes(op, inputs, 1)[0]
    }
    pub fn weights(&mut self, dims: &[usize], name: &str) -> Value {
        let n: usize = dims.iter().product();
        let scale = (2.0 / dims.iter().skip(1).product::<usize>().max(1) as f64).sqrt();
        let values: Vec<f32> = (0..n).map(|_| ((self.random.unit() * 2.0 - 1.0) * scale) as f32).collect();
        self.g.add_constant(Tensor::from_vec(dims.to_vec(), values), name)
    }
    fn positive(&mut self, n: usize, name: &str) -> Value {
        let values: Vec<f32> = (0..n).map(|_| (self.random.unit() + 0.5) as f32).collect();
        self.g.add_constant(Tensor::from_vec([n], values), name)
    }
    pub fn ints(&mut self, values: &[i64]) -> Value {
        self.g.add_constant(Tensor::from_ints(values), "")
    }
    pub fn conv(&mut self, x: Value, out: usize, kernel: usize, group: usize, name: &str) -> Value {
        let c = self.dims(x)[1] as usize;
        let w = self.weights(&[out, c / group, kernel, kernel], name);
        let b = self.weights(&[out], &format!("{name}.bias"));
        let pad = (kernel / 2) as i64;
        let op = Conv {
            auto_pad: "NOTSET".into(),
            dilations: vec![],
            group: group as i64,
            kernel_shape: vec![],
            pads: vec![pad; 4],
            strides: vec![],
        };
        self.op(op, &[x, w, b])
    }
    pub fn batch_norm(&mut self, x: Value, name: &str) -> Value {
        let c = self.dims(x)[1] as usize;
        let p = [self.positive(c, name), self.weights(&[c], name), self.weights(&[c], name), self.positive(c, name)];
        self.op(BatchNormalization { epsilon: 1e-5, momentum: 0.9, training_mode: false }, &[x, p[0], p[1], p[2], p[3]])
    }
    pub fn relu(&mut self, x: Value) -> Value {
        self.op(Relu {}, &[x])
    }
    pub fn add(&mut self, a: Value, b: Value) -> Value {
        self.op(Add {}, &[a, b])
    }
    pub fn concat(&mut self, parts: &[Value], axis: i64) -> Value {
        self.op(Concat { axis }, parts)
    }
    pub fn slice(&mut self, x: Value, axis: i64, from: i64, to: i64) -> Value {
        let operands = [self.ints(&[from]), self.ints(&[to]), self.ints(&[axis])];
        self.op(Slice {}, &[x, operands[0], operands[1], operands[2]])
    }
    pub fn reshape(&mut self, x: Value, dims: &[i64]) -> Value {
        let dims = self.ints(dims);
        self.op(Reshape { allowzero: false }, &[x, dims])
    }
    pub fn linear(&mut self, x: Value, out: usize, name: &str) -> Value {
        let k = *self.dims(x).last().unwrap() as usize;
        let (w, b) = (self.weights(&[k, out], name), self.weights(&[out], &format!("{name}.bias")));
        let y = self.op(MatMul {}, &[x, w]);
        self.add(y, b)
    }
    pub fn gemm(&mut self, x: Value, out: usize, name: &str) -> Value {
        let k = *self.dims(x).last().unwrap() as usize;
        let (w, b) = (self.weights(&[out, k], name), self.weights(&[out], &format!("{name}.bias")));
        self.op(Gemm { alpha: 1.0, beta: 1.0, transA: 0, transB: 1 }, &[x, w, b])
    }
    pub fn norm(&mut self, x: Value) -> Value {
        let n = *self.dims(x).last().unwrap() as usize;
        let (scale, bias) = (self.positive(n, ""), self.weights(&[n], ""));
        self.op(LayerNormalization { axis: -1, epsilon: 1e-5, stash_type: 1 }, &[x, scale, bias])
    }
    /// Self-attention over `[n, l, d]` with one projection for all of query, key and value, as exporters write it.
    pub fn attention(&mut self, x: Value, heads: i64, name: &str) -> Value {
        let d = self.dims(x)[2];
        let h = self.norm(x);
        let h = self.linear(h, 3 * d as usize, &format!("{name}.qkv"));
        let h = self.reshape(h, &[0, 0, 3, heads, d / heads]);
        let h = self.op(Transpose { perm: vec![2, 0, 3, 1, 4] }, &[h]);
        let mut parts = vec![];
        for k in 0..3 {
            let p = self.slice(h, 0, k, k + 1);
            let axes = self.ints(&[0]);
            parts.push(self.op(Squeeze {}, &[p, axes]));
        }
        let kt = self.op(Transpose { perm: vec![0, 1, 3, 2] }, &[parts[1]]);
        let scores = self.op(MatMul {}, &[parts[0], kt]);
        let scores = self.op(Softmax { axis: -1 }, &[scores]);
        let o = self.op(MatMul {}, &[scores, parts[2]]);
        let o = self.op(Transpose { perm: vec![0, 2, 1, 3] }, &[o]);
        let o = self.reshape(o, &[0, 0, d]);
        let o = self.linear(o, d as usize, &format!("{name}.out"));
        self.add(x, o)
    }
    pub fn mlp(&mut self, x: Value, width: usize, name: &str) -> Value {
        let d = self.dims(x)[2] as usize;
        let h = self.norm(x);
        let h = self.linear(h, width, &format!("{name}.up"));
        let h = self.op(Gelu { approximate: "none".into() }, &[h]);
        let h = self.linear(h, d, &format!("{name}.down"));
        self.add(x, h)
    }
}

/// Random inputs for a graph; symbols are 2.
pub fn inputs(g: &Graph, random: &mut Random) -> Vec<Tensor> {
    let make = |v: &Value| {
        let dims: Vec<usize> = g.ty(*v).as_tensor().unwrap().dims.iter().map(|d| d.known().unwrap_or(2) as usize).collect();
        let n = dims.iter().product::<usize>();
        Tensor::from_vec(dims, (0..n).map(|_| (random.unit() * 2.0 - 1.0) as f32).collect())
    };
    g.inputs().iter().map(make).collect()
}

/// A random network: images or sequences, with everything that ties channels.
pub fn random(seed: u64) -> Graph {
    let mut random = Random(seed);
    if random.bits() % 3 == 0 { sequence(seed) } else { image(seed) }
}

fn sequence(seed: u64) -> Graph {
    let mut n = Net::new(&[if seed % 2 == 0 { 0 } else { 2 }, 4, 12], seed);
    let x = n.input();
    let mut x = n.linear(x, 12, "embed");
    for k in 0..1 + n.below(3) {
        let name = format!("block{k}");
        x = match n.below(4) {
            0 => n.attention(x, 3, &name),
            1 => n.attention(x, 4, &name),
            2 => n.mlp(x, 10, &name),
            _ => {
                let a = n.linear(x, 8, &format!("{name}.a"));
                let b = n.linear(x, 8, &format!("{name}.b"));
                let b = n.op(Sigmoid {}, &[b]);
                let c = n.op(Mul {}, &[a, b]);
                let both = n.concat(&[c, a], 2);
                n.linear(both, 12, &name)
            }
        };
    }
    let axes = n.ints(&[1]);
    let m = n.op(ReduceMean { keepdims: false, noop_with_empty_axes: false }, &[x, axes]);
    let y = n.gemm(m, 5, "head");
    n.finish(&[y])
}

fn image(seed: u64) -> Graph {
    let mut n = Net::new(&[if seed % 2 == 0 { 0 } else { 2 }, 3, 6, 6], seed);
    let x = n.input();
    let first = n.conv(x, 8, 3, 1, "stem");
    let mut pool = vec![first];
    for k in 0..3 + n.below(6) {
        let at = n.below(pool.len());
        let x = pool[at];
        let c = n.dims(x)[1] as usize;
        let name = format!("l{k}");
        let y = match n.below(12) {
            0 => {
                let out = 4 + n.below(8);
                n.conv(x, out, 3, 1, &name)
            }
            1 => n.batch_norm(x, &name),
            2 => n.relu(x),
            3 => n.conv(x, c * (1 + k % 2), 3, c, &name),
            4 if c % 2 == 0 => n.conv(x, 6, 1, 2, &name),
            5 => {
                let h = n.conv(x, 5, 1, 1, &name);
                let h = n.relu(h);
                let h = n.conv(h, c, 3, 1, &format!("{name}b"));
                n.add(x, h)
            }
            6 => {
                let other = n.below(pool.len());
                n.concat(&[x, pool[other]], 1)
            }
            7 if c >= 4 => {
                let to = c as i64 - 1;
                n.slice(x, 1, 1, to)
            }
            8 if c % 2 == 0 => {
                let sizes = n.ints(&[c as i64 / 2; 2]);
                let parts = n.nodes(Split { axis: 1, num_outputs: None }, &[x, sizes], 2);
                n.op(Mul {}, &[parts[0], parts[1]])
            }
            9 if c % 2 == 0 => {
                let h = n.reshape(x, &[0, 2, c as i64 / 2, 6, 6]);
                let h = n.op(Transpose { perm: vec![0, 2, 1, 3, 4] }, &[h]);
                n.reshape(h, &[0, c as i64, 6, 6])
            }
            10 => {
                // A gate per channel, as in squeeze and excitation.
                let s = n.op(GlobalAveragePool {}, &[x]);
                let s = n.conv(s, 3, 1, 1, &name);
                let s = n.relu(s);
                let s = n.conv(s, c, 1, 1, &format!("{name}b"));
                let s = n.op(Sigmoid {}, &[s]);
                n.op(Mul {}, &[x, s])
            }
            _ => {
                let op = MaxPool {
                    auto_pad: "NOTSET".into(),
                    ceil_mode: 0,
                    dilations: vec![],
                    kernel_shape: vec![3, 3],
                    pads: vec![1; 4],
                    storage_order: 0,
                    strides: vec![1, 1],
                };
                n.op(op, &[x])
            }
        };
        pool.push(y);
    }
    let last = *pool.last().unwrap();
    let axes = n.ints(&[2, 3]);
    let m = if seed % 3 == 0 {
        n.op(Flatten { axis: 1 }, &[last])
    } else {
        n.op(ReduceMean { keepdims: false, noop_with_empty_axes: false }, &[last, axes])
    };
    let y = n.gemm(m, 5, "head");
    n.finish(&[y])
}
