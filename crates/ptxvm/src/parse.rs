//! Reads PTX text.

use crate::Fault;
use crate::inst::{
    Bin, Cmp, Inst, IntRound, Kernel, Matrix, Module, Op, Param, Round, Shuffle, Space, Special, Start, Ty, Un, Wgmma,
};
use std::collections::HashMap;

/// Generic addresses of parameters begin here.
pub(crate) const PARAMETERS: u64 = 1 << 62;

/// One statement: its words, with the line where it begins.
struct Statement {
    line: usize,
    text: String,
}

impl Module {
    /// Reads a module.
    pub fn parse(text: &str) -> Result<Module, Fault> {
        let statements = statements(text);
        let mut target = String::new();
        let mut kernels = HashMap::new();
        let mut shared = vec![];
        let mut k = 0;
        while k < statements.len() {
            let s = &statements[k];
            let words: Vec<&str> = s.text.split_whitespace().collect();
            match words.first() {
                Some(&".target") => target = s.text[".target".len()..].trim().to_owned(),
                Some(&".version" | &".address_size") => {}
                Some(&".extern") if s.text.contains(".shared") => shared.push(s.text.clone()),
                _ if s.text.contains(".entry") => {
                    let end = (k..statements.len()).find(|&e| statements[e].text == "}").ok_or_else(|| Fault {
                        at: "module".into(),
                        line: s.line,
                        what: "a kernel without an end".into(),
                    })?;
                    let kernel = Reader::kernel(&statements[k..end], &shared)?;
                    kernels.insert(kernel.name.clone(), kernel);
                    k = end;
                }
                _ => return Err(Fault { at: "module".into(), line: s.line, what: format!("unknown directive '{}'", s.text) }),
            }
            k += 1;
        }
        Ok(Module { target, kernels })
    }
}

/// Splits text at `;`, braces of bodies, labels and ends of directives.
fn statements(text: &str) -> Vec<Statement> {
    let mut out = vec![];
    let (mut current, mut start) = (String::new(), 0);
    for (n, line) in text.lines().enumerate() {
        let line = line.split("//").next().unwrap_or("").trim();
        if line.is_empty() {
            continue;
        }
        if current.is_empty() {
            start = n + 1;
        }
        let whole = (line.starts_with(".version") || line.starts_with(".target") || line.starts_with(".address_size"))
            || line == "{"
            || line == "}"
            || line.ends_with(':');
        if whole {
            if !current.is_empty() {
                out.push(Statement { line: start, text: std::mem::take(&mut current) });
            }
            out.push(Statement { line: n + 1, text: line.to_owned() });
            continue;
        }
        let mut rest = line;
        while let Some(at) = rest.find(';') {
            current.push_str(rest[..at].trim());
            out.push(Statement { line: start, text: std::mem::take(&mut current) });
            start = n + 1;
            rest = rest[at + 1..].trim();
        }
        if !rest.is_empty() {
            current.push_str(rest);
            current.push(' ');
        }
    }
    if !current.trim().is_empty() {
        out.push(Statement { line: start, text: current });
    }
    out
}

struct Reader {
    kernel: Kernel,
    registers: HashMap<String, u32>,
    constants: HashMap<Start, u32>,
    symbols: HashMap<String, u64>,
    labels: HashMap<String, usize>,
    branches: Vec<(usize, String)>,
    /// Names of shared memory of the launch.
    dynamic: Vec<String>,
    uses_dynamic: bool,
    line: usize,
}

impl Reader {
    fn fail<T>(&self, what: impl Into<String>) -> Result<T, Fault> {
        Err(Fault { at: format!("kernel {}", self.kernel.name), line: self.line, what: what.into() })
    }

    fn kernel(statements: &[Statement], shared: &[String]) -> Result<Kernel, Fault> {
        let head = &statements[0];
        let kernel = Kernel {
            name: String::new(),
            code: vec![],
            registers: vec![],
            params: vec![],
            shared: 0,
            local: 0,
            dynamic_shared: false,
            asynchronous: false,
            cluster: 1,
        };
        let mut r = Reader {
            kernel,
            registers: HashMap::new(),
            constants: HashMap::new(),
            symbols: HashMap::new(),
            labels: HashMap::new(),
            branches: vec![],
            dynamic: shared.iter().filter_map(|t| Some(t.split_whitespace().last()?.split('[').next()?.to_owned())).collect(),
            uses_dynamic: false,
            line: head.line,
        };
        r.fresh(Start::Plain); // what operands that an instruction does not have name
        r.head(&head.text)?;
        for s in &statements[1..] {
            r.line = s.line;
            match s.text.as_str() {
                "{" => {}
                t if t.ends_with(':') => {
                    r.labels.insert(t.trim_end_matches(':').to_owned(), r.kernel.code.len());
                }
                t if t.starts_with(".reg") => r.declare(t)?,
                t if t.starts_with(".shared") || t.starts_with(".local") || t.starts_with(".extern") => r.space(t)?,
                t if t.starts_with(".pragma") => {}
                t => r.instruction(t)?,
            }
        }
        for (at, label) in std::mem::take(&mut r.branches) {
            match r.labels.get(&label) {
                Some(&to) => r.kernel.code[at].imm = to as i64,
                None => return r.fail(format!("no label '{label}'")),
            }
        }
        let line = r.line as u32;
        // Shared memory of the launch begins behind that of the kernel, which is known now.
        if r.uses_dynamic {
            r.kernel.dynamic_shared = true;
            let base = r.kernel.dynamic_base() as u64;
            for start in &mut r.kernel.registers {
                if *start == Start::Dynamic {
                    *start = Start::Const(base);
                }
            }
        }
        r.kernel.asynchronous = r.kernel.code.iter().any(|i| {
            matches!(
                i.op,
                Op::Wgmma(_) | Op::BarrierInit | Op::BarrierArrive { .. } | Op::BarrierTry | Op::BulkCopy | Op::BoxCopy
            )
        });
        let last = Inst { op: Op::Exit, guard: 0, d: 0, a: 0, b: 0, c: 0, more: Box::new([]), imm: 0, line };
        r.kernel.code.push(last);
        Ok(r.kernel)
    }

    /// `.visible .entry name(.param .u64 a, ...) .maxntid ...`
    fn head(&mut self, text: &str) -> Result<(), Fault> {
        let rest = text.split(".entry").nth(1).unwrap_or("").trim();
        let (name, rest) = rest.split_once('(').unwrap_or((rest, ""));
        self.kernel.name = name.trim().to_owned();
        let (list, behind) = rest.split_once(')').unwrap_or((rest, ""));
        if let Some(count) = behind.split(".reqnctapercluster").nth(1) {
            let numbers: Vec<&str> =
                count.split_whitespace().map(|n| n.trim_end_matches(',')).take_while(|n| !n.starts_with('.')).collect();
            match (numbers.first().and_then(|n| n.parse().ok()), numbers.iter().skip(1).all(|n| *n == "1")) {
                (Some(n), true) if (1..=8).contains(&n) => self.kernel.cluster = n,
                _ => return self.fail(format!("clusters of {count}")),
            }
        }
        let mut offset = 0usize;
        for p in list.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let words: Vec<&str> = p.split_whitespace().collect();
            // `.param .align 64 .b8 name[128]`
            if let [_, ".align", align, ".b8", array] = words[..] {
                let array = array.strip_suffix(']').and_then(|a| a.split_once('['));
                let size = array.and_then(|(name, n)| Some((name, n.parse::<usize>().ok()?)));
                let (Some((name, bytes)), Ok(align)) = (size, align.parse::<usize>()) else {
                    return self.fail(format!("cannot read parameter '{p}'"));
                };
                offset = offset.next_multiple_of(align.max(1));
                self.symbols.insert(name.to_owned(), offset as u64);
                self.kernel.params.push(Param { offset, bytes });
                offset += bytes;
                continue;
            }
            let (Some(ty), Some(&name)) = (words.get(1).and_then(|t| Ty::parse(t.trim_start_matches('.'))), words.last()) else {
                return self.fail(format!("cannot read parameter '{p}'"));
            };
            offset = offset.next_multiple_of(ty.bytes());
            self.symbols.insert(name.to_owned(), offset as u64);
            self.kernel.params.push(Param { offset, bytes: ty.bytes() });
            offset += ty.bytes();
        }
        Ok(())
    }

    fn fresh(&mut self, start: Start) -> u32 {
        self.kernel.registers.push(start);
        self.kernel.registers.len() as u32 - 1
    }

    /// `.reg .b32 %r<10>`
    fn declare(&mut self, text: &str) -> Result<(), Fault> {
        let words: Vec<&str> = text.split_whitespace().collect();
        for name in words[2..].iter().flat_map(|w| w.split(',')).filter(|w| !w.is_empty()) {
            match name.split_once('<') {
                Some((base, count)) => {
                    let Ok(count) = count.trim_end_matches('>').parse::<u32>() else {
                        return self.fail("cannot read the number of registers");
                    };
                    for i in 0..count {
                        let n = self.fresh(Start::Plain);
                        self.registers.insert(format!("{base}{i}"), n);
                    }
                }
                None => {
                    let n = self.fresh(Start::Plain);
                    self.registers.insert(name.to_owned(), n);
                }
            }
        }
        Ok(())
    }

    /// `.shared .align 16 .b8 name[1024]`
    fn space(&mut self, text: &str) -> Result<(), Fault> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let align = words.iter().position(|w| *w == ".align").and_then(|k| words.get(k + 1)?.parse::<usize>().ok()).unwrap_or(1);
        let Some((name, size)) = words.last().and_then(|w| w.split_once('[')) else {
            return self.fail("cannot read a declaration");
        };
        let size = size.trim_end_matches(']');
        let element = words.iter().find_map(|w| Ty::parse(w.trim_start_matches('.'))).map_or(1, Ty::bytes);
        if text.starts_with(".extern") {
            self.dynamic.push(name.to_owned());
            return Ok(());
        }
        let Ok(size) = size.parse::<usize>() else { return self.fail("cannot read a size") };
        let place = if words[0] == ".local" { &mut self.kernel.local } else { &mut self.kernel.shared };
        *place = place.next_multiple_of(align);
        self.symbols.insert(name.to_owned(), *place as u64);
        *place += size * element;
        Ok(())
    }

    fn constant(&mut self, start: Start) -> u32 {
        if let Some(&n) = self.constants.get(&start) {
            return n;
        }
        let n = self.fresh(start);
        self.constants.insert(start, n);
        n
    }

    /// The register of an operand.
    fn operand(&mut self, text: &str) -> Result<u32, Fault> {
        let text = text.trim();
        if let Some(&n) = self.registers.get(text) {
            return Ok(n);
        }
        if self.dynamic.iter().any(|d| d == text) {
            self.uses_dynamic = true;
            return Ok(self.constant(Start::Dynamic));
        }
        if let Some(&n) = self.symbols.get(text) {
            return Ok(self.constant(Start::Const(n)));
        }
        let axis = |t: &str| match t.rsplit('.').next() {
            Some("x") => 0,
            Some("y") => 1,
            _ => 2,
        };
        if let Some(rest) = text.strip_prefix('%') {
            let special = match rest.split('.').next().unwrap_or("") {
                "tid" => Special::Tid(axis(rest)),
                "ntid" => Special::NTid(axis(rest)),
                "ctaid" => Special::Cta(axis(rest)),
                "nctaid" => Special::NCta(axis(rest)),
                "laneid" => Special::Lane,
                "warpid" => Special::Warp,
                "cluster_ctarank" => Special::Rank,
                _ => return self.fail(format!("no register '{text}'")),
            };
            return Ok(self.constant(Start::Special(special)));
        }
        match number(text) {
            Some(v) => Ok(self.constant(Start::Const(v))),
            None => self.fail(format!("cannot read operand '{text}'")),
        }
    }

    fn operands(&mut self, list: &[String]) -> Result<Vec<u32>, Fault> {
        list.iter().map(|t| self.operand(t)).collect()
    }

    /// `[%rd1+8]`: register and offset.
    fn address(&mut self, text: &str) -> Result<(u32, i64), Fault> {
        let inner = text.trim().trim_start_matches('[').trim_end_matches(']').trim();
        let split = inner.find('+'); // a negative number stands behind a plus too: `[%q1+-8]`
        let (base, offset) = match split {
            Some(k) => (&inner[..k], inner[k + 1..].trim().parse::<i64>().ok()),
            None => (inner, Some(0)),
        };
        match offset {
            Some(o) => Ok((self.operand(base)?, o)),
            None => self.fail(format!("cannot read address '{text}'")),
        }
    }

    fn instruction(&mut self, text: &str) -> Result<(), Fault> {
        let mut text = text.trim();
        let mut guard = 0;
        if let Some(rest) = text.strip_prefix('@') {
            let (p, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            let negated = p.starts_with('!');
            guard = 1 + 2 * self.operand(p.trim_start_matches('!'))? + u32::from(negated);
            text = rest.trim();
        }
        let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let list = split_operands(rest);
        let mut inst = self.decode(name, &list)?;
        inst.guard = guard;
        inst.line = self.line as u32;
        self.kernel.code.push(inst);
        Ok(())
    }

    fn decode(&mut self, name: &str, list: &[String]) -> Result<Inst, Fault> {
        let parts: Vec<&str> = name.split('.').collect();
        let has = |p: &str| parts.contains(&p);
        let types: Vec<Ty> = parts[1..].iter().filter_map(|p| Ty::parse(p)).collect();
        let ty = types.last().copied();
        let mut i = Inst { op: Op::Nothing, guard: 0, d: 0, a: 0, b: 0, c: 0, more: Box::new([]), imm: 0, line: 0 };
        let typed = |s: &Self| match ty {
            Some(t) => Ok(t),
            None => s.fail(format!("'{name}' has no type")),
        };
        let space = if has("param") {
            Space::Param
        } else if has("shared") {
            Space::Shared
        } else if has("local") {
            Space::Local
        } else {
            Space::Global
        };
        let bin = |b: Bin, s: &Self| Ok::<Op, Fault>(Op::Bin(b, typed(s)?));
        match parts[0] {
            "bra" => {
                i.op = Op::Branch;
                self.branches.push((self.kernel.code.len(), list[0].clone()));
                return Ok(i);
            }
            "ret" | "exit" => {
                i.op = Op::Exit;
                return Ok(i);
            }
            "barrier" if has("cluster") => {
                i.op = if has("arrive") { Op::ClusterArrive } else { Op::ClusterWait };
                return Ok(i);
            }
            "mapa" => {
                i.op = Op::MapShared;
                i.d = self.operand(&list[0])?;
                i.a = self.operand(&list[1])?;
                i.b = self.operand(&list[2])?;
                return Ok(i);
            }
            "fence" if has("mbarrier_init") => {
                i.op = Op::BarrierFence;
                return Ok(i);
            }
            "bar" | "barrier" => {
                i.op = if has("warp") { Op::WarpBarrier } else { Op::Barrier };
                return Ok(i);
            }
            "fence" if has("proxy") => {
                i.op = Op::ProxyFence;
                return Ok(i);
            }
            "membar" | "fence" | "setmaxnreg" => return Ok(i),
            "mbarrier" => {
                let at = list.len() - usize::from(!has("init") && (has("expect_tx") || has("try_wait"))) - 1;
                match () {
                    () if has("init") => {
                        i.op = Op::BarrierInit;
                        (i.a, i.imm) = self.address(&list[0])?;
                        i.b = self.operand(&list[1])?;
                    }
                    () if has("arrive") && list[0] == "_" => {
                        i.op = Op::BarrierArrive { bytes: has("expect_tx"), far: has("shared::cluster") };
                        (i.a, i.imm) = self.address(&list[at])?;
                        i.b = if has("expect_tx") { self.operand(&list[at + 1])? } else { 0 };
                    }
                    () if has("try_wait") && has("parity") => {
                        i.op = Op::BarrierTry;
                        i.d = self.operand(&list[0])?;
                        (i.a, i.imm) = self.address(&list[at])?;
                        i.b = self.operand(&list[at + 1])?;
                    }
                    () => return self.fail(format!("unknown '{name}'")),
                }
                return Ok(i);
            }
            "wgmma" => return self.wgmma(name, &parts, &types, list),
            "ld" => {
                let count = if has("v4") {
                    4
                } else if has("v2") {
                    2
                } else {
                    1
                };
                i.op = Op::Load { space, ty: typed(self)?, count };
                i.more = self.operands(&braces(&list[0]))?.into();
                (i.a, i.imm) = self.address(&list[1])?;
                return Ok(i);
            }
            "st" => {
                let count = if has("v4") {
                    4
                } else if has("v2") {
                    2
                } else {
                    1
                };
                i.op = Op::Store { space, ty: typed(self)?, count };
                (i.a, i.imm) = self.address(&list[0])?;
                i.more = self.operands(&braces(&list[1]))?.into();
                return Ok(i);
            }
            "atom" => {
                i.op = if has("cas") {
                    Op::Cas
                } else if has("add") {
                    Op::AtomicAdd
                } else {
                    return self.fail(format!("unknown '{name}'"));
                };
                i.d = self.operand(&list[0])?;
                (i.a, i.imm) = self.address(&list[1])?;
                i.b = self.operand(&list[2])?;
                if i.op == Op::Cas {
                    i.c = self.operand(&list[3])?;
                }
                return Ok(i);
            }
            "prefetch" => return Ok(i),
            "cvta" if has("param") => {
                i.op = Op::Bin(Bin::Add, Ty::U64);
                i.d = self.operand(&list[0])?;
                i.a = self.operand(&list[1])?;
                i.b = self.constant(Start::Const(PARAMETERS));
                return Ok(i);
            }
            "cp" if has("tensor") => {
                let rank = parts.iter().find_map(|p| p.strip_suffix('d')?.parse::<usize>().ok());
                let plain = name.trim_end_matches(".multicast::cluster");
                let whole = plain.ends_with("shared::cluster.global.tile.mbarrier::complete_tx::bytes");
                let count = if plain == name { 3 } else { 4 };
                let (true, Some(rank), true) = (whole, rank, list.len() == count) else {
                    return self.fail(format!("unknown '{name}'"));
                };
                // Shared memory and mbarrier with their offsets, the map, and coordinates.
                let mut more = vec![];
                for k in [0, 2] {
                    let (base, offset) = self.address(&list[k])?;
                    more.extend([base, self.constant(Start::Const(offset as u64))]);
                }
                let inner = list[1].trim().trim_start_matches('[').trim_end_matches(']');
                let Some((map, at)) = inner.split_once(',') else { return self.fail(format!("cannot read '{}'", list[1])) };
                more.push(self.operand(map)?);
                let at = self.operands(&braces(at))?;
                if at.len() != rank {
                    return self.fail(format!("{} coordinates of {rank} axes", at.len()));
                }
                more.extend(at);
                // Blocks of the cluster that get it.
                i.a = if count == 4 { self.operand(&list[3])? } else { 0 };
                i.op = Op::BoxCopy;
                i.more = more.into();
                return Ok(i);
            }
            "cp" if has("bulk") => {
                let count = if has("multicast::cluster") { 5 } else { 4 };
                if !name.contains("shared::cluster.global.mbarrier::complete_tx::bytes") || list.len() != count {
                    return self.fail(format!("unknown '{name}'"));
                }
                i.op = Op::BulkCopy;
                // Addresses with their offsets: to, from, bytes, mbarrier.
                let mut more = vec![];
                for k in [0, 1, 3] {
                    let (base, offset) = self.address(&list[k])?;
                    more.extend([base, self.constant(Start::Const(offset as u64))]);
                }
                more.push(self.operand(&list[2])?);
                i.a = if count == 5 { self.operand(&list[4])? } else { 0 };
                i.more = more.into();
                return Ok(i);
            }
            "cp" => {
                i.op = match () {
                    () if has("commit_group") => Op::CopyCommit,
                    () if has("wait_all") => Op::CopyWait(u32::MAX),
                    () if has("wait_group") => Op::CopyWait(list[0].parse().unwrap_or(0)),
                    () => {
                        (i.d, i.imm) = self.address(&list[0])?;
                        let (a, offset) = self.address(&list[1])?;
                        i.a = a;
                        i.c = self.constant(Start::Const(offset as u64));
                        let bytes: u8 = list[2].parse().unwrap_or(0);
                        // The bytes that are there; the others become 0.
                        i.b = self.operand(list.get(3).unwrap_or(&list[2]))?;
                        Op::CopyAsync { bytes }
                    }
                };
                return Ok(i);
            }
            "ldmatrix" => {
                let count = if has("x4") {
                    4
                } else if has("x2") {
                    2
                } else {
                    1
                };
                i.op = Op::LoadMatrix { count, transposed: has("trans") };
                i.more = self.operands(&braces(&list[0]))?.into();
                (i.a, i.imm) = self.address(&list[1])?;
                return Ok(i);
            }
            "mma" => {
                i.op = Op::Matrix(match () {
                    () if has("m16n8k16") && has("bf16") => Matrix::BF16,
                    () if has("m16n8k16") && has("f16") => Matrix::F16,
                    () if has("m16n8k8") && has("tf32") => Matrix::TF32,
                    () if has("m16n8k32") => Matrix::I8(types[1] == Ty::S8, types[2] == Ty::S8),
                    () => return self.fail(format!("unknown matrix instruction '{name}'")),
                });
                let mut all = vec![];
                for l in list {
                    all.extend(self.operands(&braces(l))?);
                }
                i.more = all.into();
                return Ok(i);
            }
            "shfl" => {
                i.op = Op::Shuffle(match () {
                    () if has("bfly") => Shuffle::Butterfly,
                    () if has("down") => Shuffle::Down,
                    () if has("up") => Shuffle::Up,
                    () => Shuffle::Index,
                });
                i.d = self.operand(list[0].split('|').next().unwrap_or(""))?;
                i.a = self.operand(&list[1])?;
                i.b = self.operand(&list[2])?;
                i.c = self.operand(&list[3])?;
                return Ok(i);
            }
            "mov" if list[0].starts_with('{') => {
                i.op = Op::Split;
                i.more = self.operands(&braces(&list[0]))?.into();
                i.a = self.operand(&list[1])?;
                i.imm = i64::from(typed(self)?.bytes() as u32 * 4);
                return Ok(i);
            }
            "mov" if list[1].starts_with('{') => {
                i.op = Op::Join;
                i.more = self.operands(&braces(&list[1]))?.into();
                i.d = self.operand(&list[0])?;
                i.imm = i64::from(typed(self)?.bytes() as u32 * 4);
                return Ok(i);
            }
            "mov" => i.op = Op::Mov(typed(self)?),
            "add" => i.op = bin(Bin::Add, self)?,
            "sub" => i.op = bin(Bin::Sub, self)?,
            "mul" if has("hi") => i.op = bin(Bin::MulHi, self)?,
            "mul" if has("wide") => i.op = bin(Bin::MulWide, self)?,
            "mul" => i.op = bin(Bin::Mul, self)?,
            "div" => i.op = bin(Bin::Div, self)?,
            "rem" => i.op = bin(Bin::Rem, self)?,
            "min" if has("NaN") => i.op = bin(Bin::MinNan, self)?,
            "max" if has("NaN") => i.op = bin(Bin::MaxNan, self)?,
            "min" => i.op = bin(Bin::Min, self)?,
            "max" => i.op = bin(Bin::Max, self)?,
            "and" => i.op = bin(Bin::And, self)?,
            "or" => i.op = bin(Bin::Or, self)?,
            "xor" => i.op = bin(Bin::Xor, self)?,
            "shl" => i.op = bin(Bin::Shl, self)?,
            "shr" => i.op = bin(Bin::Shr, self)?,
            "copysign" => i.op = bin(Bin::CopySign, self)?,
            "neg" => i.op = Op::Un(Un::Neg, typed(self)?),
            "abs" => i.op = Op::Un(Un::Abs, typed(self)?),
            "not" => i.op = Op::Un(Un::Not, typed(self)?),
            "sqrt" => i.op = Op::Un(Un::Sqrt, typed(self)?),
            "clz" => i.op = Op::Un(Un::Clz, typed(self)?),
            "fma" => i.op = Op::Fma(typed(self)?),
            "mad" => i.op = Op::Mad(typed(self)?),
            "dp4a" => i.op = Op::Dp4a(types[0].is_signed(), types[1].is_signed()),
            "bfe" => i.op = Op::Bfe(typed(self)?),
            "selp" => i.op = Op::Selp,
            "setp" => {
                let cmp = match parts[1] {
                    "eq" => Cmp::Eq,
                    "ne" => Cmp::Ne,
                    "lt" => Cmp::Lt,
                    "le" => Cmp::Le,
                    "gt" => Cmp::Gt,
                    "ge" => Cmp::Ge,
                    "neu" => Cmp::Neu,
                    "nan" => Cmp::Nan,
                    "num" => Cmp::Num,
                    other => return self.fail(format!("unknown comparison '{other}'")),
                };
                i.op = Op::Setp(cmp, typed(self)?);
            }
            "cvt" if types.first() == Some(&Ty::F16x2) => i.op = Op::CvtPair(Ty::F16),
            "cvt" if has("bf16x2") => i.op = Op::CvtPair(Ty::BF16),
            "cvt" => {
                let round = match () {
                    () if has("rni") => Round::ToInt(IntRound::Nearest),
                    () if has("rzi") => Round::ToInt(IntRound::Zero),
                    () if has("rmi") => Round::ToInt(IntRound::Down),
                    () if has("rpi") => Round::ToInt(IntRound::Up),
                    () if has("rn") || has("rna") => Round::Nearest,
                    () => Round::None,
                };
                let [to, from] = types[..] else { return self.fail(format!("'{name}' must have two types")) };
                if (to == Ty::TF32) != has("rna") {
                    return self.fail(format!(
                        "'{name}': ties away from zero are for tf32, which has no other rounding on all machines"
                    ));
                }
                i.op = Op::Cvt { to, from, round };
            }
            _ => return self.fail(format!("unknown instruction '{name}'")),
        }
        let all = self.operands(list)?;
        let mut it = all.into_iter();
        i.d = it.next().unwrap_or(0);
        i.a = it.next().unwrap_or(0);
        i.b = it.next().unwrap_or(0);
        i.c = it.next().unwrap_or(0);
        Ok(i)
    }
}

impl Reader {
    fn wgmma(&mut self, name: &str, parts: &[&str], types: &[Ty], list: &[String]) -> Result<Inst, Fault> {
        let mut i = Inst { op: Op::Nothing, guard: 0, d: 0, a: 0, b: 0, c: 0, more: Box::new([]), imm: 0, line: 0 };
        match parts[1] {
            "fence" => i.op = Op::WgmmaFence,
            "commit_group" => i.op = Op::WgmmaCommit,
            "wait_group" => {
                let Some(left) = list.first().and_then(|n| n.parse().ok()) else {
                    return self.fail(format!("'{name}' without a number"));
                };
                i.op = Op::WgmmaWait(left);
            }
            "mma_async" => {
                let (kind, depth) = match types {
                    [Ty::F32, Ty::F16, Ty::F16] => (Matrix::F16, 16),
                    [Ty::F32, Ty::BF16, Ty::BF16] => (Matrix::BF16, 16),
                    [Ty::F32, Ty::TF32, Ty::TF32] => (Matrix::TF32, 8),
                    [Ty::S32, a @ (Ty::S8 | Ty::U8), b @ (Ty::S8 | Ty::U8)] => (Matrix::I8(*a == Ty::S8, *b == Ty::S8), 32),
                    _ => return self.fail(format!("unknown matrix instruction '{name}'")),
                };
                let columns = parts
                    .iter()
                    .find_map(|p| p.strip_prefix("m64n")?.strip_suffix(&format!("k{depth}"))?.parse::<u16>().ok())
                    .filter(|n| n % 8 == 0 && (8..=256).contains(n))
                    .filter(|n| !matches!(kind, Matrix::I8(..)) || *n <= 32 || n % 16 == 0);
                let Some(columns) = columns else { return self.fail(format!("no shape of 'wgmma': '{name}'")) };
                i.more = self.operands(&braces(&list[0]))?.into();
                if i.more.len() != columns as usize / 2 {
                    return self.fail(format!("'{name}' with {} sums a thread", i.more.len()));
                }
                if list.len() < 4 || list[1].starts_with('{') {
                    return self.fail(format!("'{name}' with other operands than two descriptors"));
                }
                (i.a, i.b, i.c) = (self.operand(&list[1])?, self.operand(&list[2])?, self.operand(&list[3])?);
                let rest: Vec<i64> = list[4..].iter().filter_map(|t| t.parse().ok()).collect();
                let (scales, swaps) = match (kind, &rest[..]) {
                    (Matrix::F16 | Matrix::BF16, &[a, b, x, y]) => ([a, b], [x, y]),
                    (Matrix::TF32, &[a, b]) => ([a, b], [0, 0]),
                    (Matrix::I8(..), &[]) => ([1, 1], [0, 0]),
                    _ => return self.fail(format!("'{name}' with other numbers at its end")),
                };
                if scales.iter().any(|s| s.abs() != 1) || swaps.iter().any(|s| !matches!(s, 0 | 1)) {
                    return self.fail(format!("'{name}' with other numbers at its end"));
                }
                i.op = Op::Wgmma(Wgmma { kind, columns, negated: scales.map(|s| s < 0), transposed: swaps.map(|s| s == 1) });
            }
            _ => return self.fail(format!("unknown '{name}'")),
        }
        Ok(i)
    }
}

/// Operands between commas; those in braces and brackets stay together.
fn split_operands(text: &str) -> Vec<String> {
    let (mut out, mut depth, mut current) = (vec![], 0, String::new());
    for c in text.chars() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            ',' if depth == 0 => {
                out.push(std::mem::take(&mut current).trim().to_owned());
                continue;
            }
            _ => {}
        }
        current.push(c);
    }
    if !current.trim().is_empty() {
        out.push(current.trim().to_owned());
    }
    out
}

fn braces(text: &str) -> Vec<String> {
    text.trim().trim_start_matches('{').trim_end_matches('}').split(',').map(|t| t.trim().to_owned()).collect()
}

/// A constant: decimal, `0x...`, `0f...` or `0d...`.
fn number(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0f").or_else(|| text.strip_prefix("0F")) {
        return u32::from_str_radix(hex, 16).ok().map(u64::from);
    }
    if let Some(hex) = text.strip_prefix("0d").or_else(|| text.strip_prefix("0D")) {
        return u64::from_str_radix(hex, 16).ok();
    }
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok();
    }
    text.parse::<i64>().map(|v| v as u64).ok().or_else(|| text.parse::<u64>().ok())
}
