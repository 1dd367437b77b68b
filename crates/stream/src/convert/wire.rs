//! Outputs of the model, and streams between actors: copies where a result has several readers.

use super::*;

impl Converter<'_> {
    pub(super) fn sinks(&mut self) {
        for (i, &v) in self.graph.outputs().iter().enumerate() {
            match self.sink(v) {
                Ok((flow, scale, zero)) => {
                    let name = self.graph.value(v).name.clone();
                    let id = self.name(&name, if self.names.contains(&name) { "out" } else { "" });
                    let shape = self.pixels(&flow);
                    self.add(id, format!("output '{name}'"), Kind::Sink(i), &[(&flow, shape)]);
                    self.outputs.push(Port {
                        name,
                        dims: flow.dims,
                        dtype: self.dtype(v),
                        stream: StreamId(u32::MAX),
                        order: flow.order,
                        scale,
                        zero,
                        limits: flow.range,
                    });
                }
                Err(problem) => self.problems.extend(problem),
            }
        }
    }

    /// The stream of an output, and the scale with which it is dequantised.
    fn sink(&mut self, v: Value) -> Outcome<(Flow, Option<f32>, i64)> {
        let g = self.graph;
        if self.failed.contains(&v) {
            return Err(None);
        }
        if let Some(flow) = self.flows.get(&v) {
            return Ok((flow.clone(), None, 0));
        }
        let wrong = |message: &str| {
            let at = format!("output '{}'", g.value(v).name);
            let help = "put QuantizeLinear (and DequantizeLinear) behind the last operator, or QONNX Quant";
            Some(Problem { at, message: message.into(), help: help.into() })
        };
        let Some(n) = self.producer(v) else { return Err(wrong("is no result of an operator")) };
        if let Op::DequantizeLinear(_) = g.node(n).op {
            let x = self.operand(n, 0)?;
            let (scale, zero) = (self.constant(n, 1, "scale")?.clone(), g.node(n).operand(2).and_then(|v| g.constant(v)));
            if scale.len() != 1 {
                return Err(wrong("is dequantised with a scale a channel"));
            }
            let flow = self.flow(n, x)?;
            return Ok((flow, Some(scale.float(0) as f32), zero.and_then(|z| z.to_ints().first().copied()).unwrap_or(0)));
        }
        if let Some(flow) = self.raw_accumulators(v)? {
            return Ok((flow, None, 0));
        }
        // Its operands may be what is wrong; then that was told.
        if g.node(n).inputs.iter().flatten().any(|v| self.failed.contains(v)) {
            return Err(None);
        }
        Err(wrong("is real numbers that are not quantised"))
    }

    /// Actors that no output needs are left out; inputs that none needs are problems.
    pub(super) fn prune(&mut self) {
        let mut needed: Vec<bool> = self.actors.iter().map(|a| matches!(a.kind, Kind::Sink(_))).collect();
        for to in (0..self.actors.len()).rev() {
            if needed[to] {
                self.edges.iter().filter(|e| e.to == to).for_each(|e| needed[e.from] = true);
            }
        }
        let number: Vec<usize> = needed
            .iter()
            .scan(0, |n, &k| {
                let at = *n;
                *n += usize::from(k);
                Some(at)
            })
            .collect();
        self.edges.retain(|e| needed[e.to]);
        for e in &mut self.edges {
            (e.from, e.to) = (number[e.from], number[e.to]);
        }
        let mut keep = needed.iter();
        self.actors.retain(|_| keep.next().copied().unwrap_or(false));
        for (i, port) in self.inputs.iter().enumerate() {
            if !self.actors.iter().any(|a| matches!(a.kind, Kind::Source(k) if k == i)) {
                let (at, message) = (format!("input '{}'", port.name), "no output depends on it".to_owned());
                self.problems.push(Problem { at, message, help: "remove it from the model".into() });
            }
        }
    }

    /// Streams and forks.
    pub(super) fn wire(mut self) -> Design {
        let count = self.actors.len();
        let mut readers: Vec<Vec<usize>> = vec![vec![]; count];
        for (i, e) in self.edges.iter().enumerate() {
            readers[e.from].push(i);
        }
        let mut design = Design {
            name: self.graph.name.clone(),
            actors: vec![],
            streams: vec![],
            inputs: self.inputs.clone(),
            outputs: self.outputs.clone(),
        };
        design.name = self.name(&self.graph.name.clone(), "");
        // What reads each edge, by its new number; streams are made when their writer is placed.
        let mut place = vec![0; count];
        let mut slots: HashMap<usize, StreamId> = HashMap::new();
        for a in 0..count {
            let mut actor = self.actors[a].clone();
            let mut mine: Vec<usize> = (0..self.edges.len()).filter(|&e| self.edges[e].to == a).collect();
            mine.sort_by_key(|&e| self.edges[e].slot);
            actor.inputs = mine.iter().map(|e| slots[e]).collect();
            let id = ActorId(design.actors.len() as u32);
            place[a] = design.actors.len();
            for &s in &actor.inputs {
                design.streams[s.index()].to = id;
            }
            design.actors.push(actor);
            match readers[a][..] {
                [] => {}
                [e] => {
                    let s = self.stream(&mut design, id, e, &slots);
                    slots.insert(e, s);
                }
                ref several => {
                    let several = several.to_vec();
                    let into = self.stream(&mut design, id, several[0], &slots);
                    let name = self.name(&self.actors[a].name.clone(), "fork");
                    let origin = self.actors[a].origin.clone();
                    let fork = ActorId(design.actors.len() as u32);
                    design.streams[into.index()].to = fork;
                    design.actors.push(Actor { name, origin, kind: Kind::Fork, inputs: vec![into], outputs: vec![] });
                    for e in several {
                        let s = self.stream(&mut design, fork, e, &slots);
                        slots.insert(e, s);
                    }
                }
            }
        }
        for a in &design.actors {
            match a.kind {
                Kind::Source(i) => {
                    if let Some(&s) = a.outputs.first() {
                        design.inputs[i].stream = s;
                    }
                }
                Kind::Sink(i) => design.outputs[i].stream = a.inputs[0],
                _ => {}
            }
        }
        design
    }

    /// The stream of an edge, written by `from`.
    fn stream(&mut self, design: &mut Design, from: ActorId, e: usize, _: &HashMap<usize, StreamId>) -> StreamId {
        let Edge { shape, format, scale, zero, .. } = self.edges[e];
        let id = StreamId(design.streams.len() as u32);
        let several = design.actors[from.index()].outputs.len();
        let base = design.actors[from.index()].name.clone();
        let name = self.name(&base, &if several == 0 { "s".to_owned() } else { format!("s{several}") });
        design.streams.push(Stream { name, format, lanes: 1, shape, scale, zero, from, to: from, depth: 2, bound: 1 });
        design.actors[from.index()].outputs.push(id);
        id
    }
}
