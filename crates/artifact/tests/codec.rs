//! Random programs and artifacts: encoding round-trips, damage is found, arbitrary bytes never do harm.

use infc_artifact::container::{Artifact, ContainerError, Kind, Reader, Requirements, VERSION, Variant};
use infc_artifact::decode::decode;
use infc_artifact::encode::encode;
use infc_artifact::parse::parse;
use infc_artifact::program::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn size() -> BoxedStrategy<Size> {
    let op = prop_oneof![
        any::<i64>().prop_map(SizeOp::Const),
        (0u32..9).prop_map(SizeOp::Symbol),
        prop::sample::select(vec![SizeOp::Add, SizeOp::Mul, SizeOp::Div, SizeOp::Mod, SizeOp::Min, SizeOp::Max]),
    ];
    vec(op, 0..4).prop_map(Size).boxed()
}

/// Sizes that are one expression.
fn expression() -> BoxedStrategy<Size> {
    let op = prop::sample::select(vec![SizeOp::Add, SizeOp::Mul, SizeOp::Div, SizeOp::Mod, SizeOp::Min, SizeOp::Max]);
    let leaf = prop_oneof![any::<i64>().prop_map(Size::constant), (0u32..5).prop_map(Size::symbol)];
    leaf.prop_recursive(4, 12, 2, move |inner| {
        (inner.clone(), inner, op.clone()).prop_map(|(a, b, op)| Size(a.0.into_iter().chain(b.0).chain([op]).collect()))
    })
    .boxed()
}

fn view(size: &BoxedStrategy<Size>) -> impl Strategy<Value = View> + use<> {
    (any::<u32>(), size.clone()).prop_map(|(buffer, offset)| View { buffer, offset })
}

fn step(size: BoxedStrategy<Size>) -> impl Strategy<Value = Step> {
    let view = view(&size).boxed();
    let value = prop_oneof![
        any::<u32>().prop_map(HostValue::Slot),
        (0u8..30, vec(size.clone(), 0..3), view.clone()).prop_map(|(dtype, dims, view)| HostValue::Tensor { dtype, dims, view }),
    ];
    let leaf = prop_oneof![
        (any::<u32>(), vec(view.clone(), 0..3), vec(size.clone(), 0..3), size.clone())
            .prop_map(|(kernel, buffers, extents, tasks)| Step::Launch { kernel, buffers, extents, tasks }),
        (view.clone(), view.clone(), size.clone()).prop_map(|(from, to, bytes)| Step::Copy { from, to, bytes }),
        (any::<u32>(), view.clone(), size.clone()).prop_map(|(symbol, from, bound)| Step::Bind { symbol, from, bound }),
        (size.clone(), size.clone(), any::<bool>(), any::<u32>()).prop_map(|(left, right, or_one, code)| Step::Require {
            left,
            right,
            or_one,
            code
        }),
        (".{0,4}", vec(any::<u8>(), 0..4), vec(prop::option::of(value.clone()), 0..3), vec(value, 0..3), any::<u32>())
            .prop_map(|(routine, attributes, inputs, outputs, code)| Step::Host { routine, attributes, inputs, outputs, code }),
        (any::<u32>(), vec(view.clone(), 0..3), vec(size.clone(), 0..3), size.clone(), any::<u32>())
            .prop_map(|(kernel, buffers, extents, tasks, code)| Step::HostLaunch { kernel, buffers, extents, tasks, code }),
        any::<u32>().prop_map(|buffer| Step::ToHost { buffer }),
        any::<u32>().prop_map(|buffer| Step::ToDevice { buffer }),
    ];
    leaf.prop_recursive(4, 20, 3, move |inner| {
        prop_oneof![
            (view.clone(), vec(inner.clone(), 0..3), vec(inner.clone(), 0..3)).prop_map(|(cond, then, otherwise)| Step::If {
                cond,
                then,
                otherwise
            }),
            (any::<u32>(), size.clone(), prop::option::of(view.clone()), vec(inner, 0..3), any::<bool>())
                .prop_map(|(counter, count, cond, body, apart)| Step::Loop { counter, count, cond, body, apart }),
        ]
    })
}

fn slot() -> impl Strategy<Value = Slot> {
    let leaf = prop_oneof![
        (0u8..30, vec(any::<Option<u64>>(), 0..3)).prop_map(|(d, dims)| HostType::Tensor(d, dims)),
        (0u8..30).prop_map(HostType::Any),
    ];
    let ty = leaf.prop_recursive(3, 3, 1, |inner| {
        prop_oneof![
            inner.clone().prop_map(|t| HostType::Sequence(Box::new(t))),
            inner.clone().prop_map(|t| HostType::Optional(Box::new(t))),
            (0u8..30, inner).prop_map(|(k, t)| HostType::Map(k, Box::new(t))),
        ]
    });
    let place = prop_oneof![
        any::<u32>().prop_map(SlotPlace::Input),
        any::<u32>().prop_map(SlotPlace::Output),
        any::<(u64, u64)>().prop_map(|(offset, bytes)| SlotPlace::Constant { offset, bytes }),
        Just(SlotPlace::Temp),
    ];
    (ty, place).prop_map(|(ty, place)| Slot { ty, place })
}

fn program(size: BoxedStrategy<Size>) -> impl Strategy<Value = Program> {
    let port = (".{0,4}", any::<u8>(), any::<u8>(), vec(size.clone(), 0..3), any::<u32>())
        .prop_map(|(name, dtype, element, dims, buffer)| Port { name, dtype, element, dims, buffer })
        .boxed();
    let source =
        prop_oneof![Just(SymbolSource::Step), any::<(u32, u32)>().prop_map(|(input, axis)| SymbolSource::Input { input, axis })];
    let name = prop_oneof![".{0,4}", "[a-c]", Just("min".to_owned())];
    let symbol = (name, source).prop_map(|(name, source)| Symbol { name, source });
    let place = prop_oneof![
        any::<u32>().prop_map(Place::Input),
        any::<u32>().prop_map(Place::Output),
        any::<u64>().prop_map(Place::Constant),
        any::<(u32, u32, Option<u64>)>().prop_map(|(first, last, offset)| Place::Arena { first, last, offset }),
        any::<u32>().prop_map(Place::State),
    ];
    let buffer = (size.clone(), place).prop_map(|(bytes, place)| Buffer { bytes, place });
    let kernel = (".{0,4}", any::<(u64, u64)>()).prop_map(|(name, (entry, scratch))| Kernel { name, entry, scratch }).boxed();
    let message = (".{0,4}", ".{0,4}").prop_map(|(node, text)| Message { node, text });
    let lists = (vec(port.clone(), 0..3), vec(port, 0..3), vec(symbol, 0..3), vec(buffer, 0..4), vec(kernel.clone(), 0..3));
    let rest = (
        vec(message, 0..2),
        vec(any::<(u32, u32)>(), 0..2),
        any::<(Option<u64>, Option<u32>)>(),
        (vec(slot(), 0..3), vec(kernel, 0..2)),
    );
    (lists, vec(step(size), 0..4), rest).prop_map(
        |((inputs, outputs, symbols, buffers, kernels), steps, (messages, states, (arena, threads), (slots, host_kernels)))| {
            Program { inputs, outputs, symbols, buffers, kernels, steps, messages, states, arena, threads, slots, host_kernels }
        },
    )
}

fn requirements(name: &str, features: &[&str]) -> Requirements {
    Requirements {
        name: name.into(),
        arch: "x86_64".into(),
        features: features.iter().map(|f| f.to_string()).collect(),
        host: None,
    }
}

/// A small artifact with two variants.
fn sample() -> Vec<u8> {
    let variant = |name: &str, features: &[&str], code: &[u8]| Variant {
        requirements: requirements(name, features),
        program: encode(&Program { arena: Some(0), ..Program::default() }),
        code: code.to_vec(),
        host_code: vec![],
    };
    let variants = [variant("new", &["avx2", "fma"], &[0xc3; 70]), variant("old", &[], &[0x90, 0xc3])];
    Artifact { manifest: b"how", variants: &variants, constants: &[&[7; 100], &[8; 28]], debug: b"names" }.to_bytes()
}

proptest! {
    #[test]
    fn programs_round_trip(program in program(size())) {
        let bytes = encode(&program);
        prop_assert_eq!(decode(&bytes).unwrap(), program.clone());
        // The text form and the check take any program, also one that makes no sense.
        let _ = (program.to_string(), program.validate(100, 100));
        for end in 0..bytes.len() {
            prop_assert!(decode(&bytes[..end]).is_err());
        }
    }

    #[test]
    fn text_round_trips(program in program(expression())) {
        let text = program.to_string();
        prop_assert_eq!(parse(&text).map_err(|e| format!("{e}\n{text}")).unwrap(), program);
    }

    #[test]
    fn any_text_is_safe(text in "(launch|if|@|[0-9]|[(){}]|\\[|\\]|\"|steps|symbol|input|f32|-|>|\\n| |\\PC){0,40}") {
        let _ = parse(&text);
    }

    #[test]
    fn any_bytes_are_safe(bytes in vec(any::<u8>(), 0..200)) {
        let _ = Reader::open(&bytes);
        if let Ok(program) = decode(&bytes) {
            prop_assert_eq!(encode(&program), bytes);
        }
    }

    #[test]
    fn changed_programs_are_safe(program in program(size()), at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let mut bytes = encode(&program);
        let at = at.index(bytes.len());
        bytes[at] = value;
        if let Ok(changed) = decode(&bytes) {
            prop_assert_eq!(encode(&changed), bytes);
            let _ = changed.validate(1 << 20, 1 << 20);
        }
    }
}

#[test]
fn numbers_beyond_their_range_are_refused() {
    let mut bytes = encode(&Program { threads: Some(u32::MAX), ..Program::default() });
    assert_eq!(decode(&bytes).unwrap().threads, Some(u32::MAX));
    *bytes.last_mut().unwrap() = 0x7f;
    assert!(decode(&bytes).is_err());
}

#[test]
fn an_artifact_reads_back() {
    let bytes = sample();
    assert_eq!(bytes, sample(), "the same bytes each time");
    let reader = Reader::open(&bytes).unwrap();
    let text = |kind, variant| reader.bytes(reader.section(kind, variant).unwrap());
    assert_eq!((text(Kind::Manifest, 0), text(Kind::Debug, 0)), (&b"how"[..], &b"names"[..]));
    assert_eq!((text(Kind::Code, 1), text(Kind::Constants, 0).len()), (&[0x90, 0xc3][..], 128));
    assert_eq!(reader.requirements(), [requirements("new", &["avx2", "fma"]), requirements("old", &[])]);
    for section in reader.sections() {
        assert_eq!(section.offset % if section.kind == Kind::Code { 4096 } else { 64 }, 0);
    }
    assert!(bytes.len() < 3 * 4096, "pages are small: {}", bytes.len());
    reader.check_constants().unwrap();
    assert!(reader.section(Kind::Code, 2).is_err());
    let mut longer = bytes.clone();
    longer.extend([1, 2, 3]);
    Reader::open(&longer).unwrap();
}

#[test]
fn every_changed_byte_is_found() {
    let bytes = sample();
    let reader = Reader::open(&bytes).unwrap();
    let interesting =
        |at: usize| at < 1024 || reader.sections().iter().any(|s| (s.offset..s.offset + s.length).contains(&(at as u64)));
    for at in (0..bytes.len()).filter(|&at| interesting(at) || at % 997 == 0) {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        let found = Reader::open(&changed).and_then(|r| r.check_constants());
        let expected = match at {
            0..8 => matches!(found, Err(ContainerError::Magic)),
            8..12 => matches!(found, Err(ContainerError::Newer { what: "format", .. })),
            16..20 => matches!(found, Err(ContainerError::Truncated { .. } | ContainerError::Tampered { .. })),
            _ => matches!(found, Err(ContainerError::Tampered { .. })),
        };
        assert!(expected, "byte {at}: {found:?}");
    }
}

#[test]
fn every_prefix_is_refused() {
    let bytes = sample();
    for end in (0..bytes.len()).filter(|e| *e < 1024 || e % 501 == 0).chain([bytes.len() - 1]) {
        assert!(matches!(Reader::open(&bytes[..end]), Err(ContainerError::Truncated { .. })), "{end} bytes");
    }
}

/// The same file with other bytes in its table, and the header's digest made right again.
fn with_table(bytes: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let end = 64 + 64 * u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
    change(&mut bytes[64..end]);
    let digest = infc_artifact::hash::digest(&[&bytes[..32], &bytes[64..end]].concat());
    bytes[32..64].copy_from_slice(&digest);
    bytes
}

/// Entries of the table, in order: manifest, then requirements, program and code of each variant, constants, debug.
#[test]
fn wrong_tables_of_variants_are_refused() {
    let bytes = sample();
    Reader::open(&with_table(&bytes, |_| ())).unwrap();
    let told = |entry: usize, field: usize, value: u8| {
        let changed = with_table(&bytes, |table| table[64 * entry + field] = value);
        Reader::table(&changed).map(|_| ()).map_err(|e| e.to_string())
    };
    let (kind, variant) = (0, 4);
    let malformed = |what: &str, at: usize| Err(format!("malformed: {what} (offset {at})"));
    assert_eq!(told(4, variant, 2), malformed("the variants are not numbered one by one", 64 + 4 * 64));
    assert_eq!(told(4, variant, 0), malformed("a section is there twice", 64 + 4 * 64));
    assert_eq!(told(5, variant, 7), malformed("a program or code of a variant without requirements", 64 + 5 * 64));
    assert_eq!(told(6, variant, 0), malformed("a section is there twice", 64 + 6 * 64));
    assert_eq!(told(0, variant, 1), malformed("a section of a variant that is shared by all", 64));
    assert_eq!(told(7, variant, 1), malformed("a section of a variant that is shared by all", 64 + 7 * 64));
    assert_eq!(told(8, kind, 9), malformed("a section of unknown kind", 64 + 8 * 64));
    assert_eq!(told(4, kind, Kind::Debug as u8), malformed("a section of a variant that is shared by all", 64 + 4 * 64));
    // Without the last entry, the code of the first variant as debug text.
    let mut shorter = bytes.clone();
    shorter[16] = 8;
    shorter[64 + 8 * 64..64 + 9 * 64].fill(0);
    let shorter = with_table(&shorter, |table| table[3 * 64] = Kind::Debug as u8);
    assert_eq!(Reader::table(&shorter).map(|_| ()).map_err(|e| e.to_string()), malformed("there is no code of a variant", 64));

    let twice = [(); 2].map(|()| Variant { requirements: requirements("one", &[]), ..Variant::default() });
    let twice = Artifact { variants: &twice, ..Artifact::default() }.to_bytes();
    assert!(Reader::open(&twice).unwrap_err().to_string().starts_with("malformed: two variants have the same name"));
}

proptest! {
    /// With the digest made right again, the checks behind it must hold alone.
    #[test]
    fn any_table_is_safe(changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let bytes = with_table(&sample(), |table| for (at, value) in changes {
            table[at.index(table.len())] = value;
        });
        if let Ok(reader) = Reader::table(&bytes) {
            let variants = reader.requirements().len() as u32;
            for (kind, variant) in [Kind::Program, Kind::Code].into_iter().flat_map(|k| (0..variants).map(move |v| (k, v))) {
                let _ = reader.check(reader.section(kind, variant).unwrap());
            }
        }
    }
}

#[test]
fn code_for_the_host_goes_with_requirements_of_its_cpu() {
    let device = Requirements { name: "gpu".into(), arch: "sm_80".into(), features: vec![], host: None };
    let beside = Requirements { host: Some(Box::new(requirements("cpu", &["avx2"]))), ..device.clone() };
    let variant = Variant { requirements: beside.clone(), code: vec![0; 3], host_code: vec![0xc3; 5], ..Variant::default() };
    let bytes = Artifact { variants: &[variant], ..Artifact::default() }.to_bytes();
    let reader = Reader::open(&bytes).unwrap();
    assert_eq!(reader.requirements(), [beside]);
    let code = reader.section(Kind::HostCode, 0).unwrap();
    assert_eq!((code.offset % 4096, reader.bytes(code)), (0, &[0xc3; 5][..]));
    // What a driver reads needs no page; another architecture may have large ones.
    assert!(reader.section(Kind::Code, 0).unwrap().offset < 4096);
    let other = Requirements { name: "cpu".into(), arch: "aarch64".into(), features: vec![], host: None };
    let variant = Variant { requirements: other, code: vec![1], ..Variant::default() };
    let far = Artifact { variants: &[variant], ..Artifact::default() }.to_bytes();
    assert_eq!(Reader::open(&far).unwrap().section(Kind::Code, 0).unwrap().offset, 65536);
    // The table: manifest, requirements, program, code, code for the host, constants, debug.
    let as_other = with_table(&bytes, |table| table[4 * 64 + 4] = 1);
    let text = Reader::table(&as_other).unwrap_err().to_string();
    assert!(text.starts_with("malformed: a program or code of a variant without requirements"), "{text}");
    // A code section of the host without a word on its CPU.
    let bare = Variant { requirements: device, ..Variant::default() };
    let both = [bare, Variant { requirements: requirements("b", &[]), ..Variant::default() }];
    let bytes = Artifact { variants: &both, ..Artifact::default() }.to_bytes();
    let as_host = with_table(&bytes, |table| {
        table[8 * 64] = Kind::HostCode as u8;
        table[8 * 64 + 4] = 1;
    });
    let text = Reader::table(&as_host).unwrap_err().to_string();
    assert!(text.contains("code for the host without requirements of its CPU"), "{text}");
}

#[test]
fn only_the_table_is_read_to_choose_a_variant() {
    let mut bytes = sample();
    let code = Reader::open(&bytes).unwrap().section(Kind::Code, 0).unwrap().offset as usize;
    bytes[code] ^= 1;
    assert!(Reader::open(&bytes).is_err());
    let reader = Reader::table(&bytes).unwrap();
    assert!(reader.check(reader.section(Kind::Code, 0).unwrap()).is_err());
    reader.check(reader.section(Kind::Code, 1).unwrap()).unwrap();
}

#[test]
fn errors_say_what_to_do() {
    let mut bytes = sample();
    bytes[8] = 1;
    assert_eq!(
        Reader::open(&bytes).unwrap_err().to_string(),
        "malformed: a format that is no longer supported; compile the model again (offset 8)"
    );
    bytes[8] = 9;
    let error = Reader::open(&bytes).unwrap_err();
    assert_eq!(error, ContainerError::Newer { what: "format", found: 9, known: VERSION });
    assert!(error.to_string().contains("update the runtime"), "{error}");
    assert_eq!(Reader::open(b"not a model, but text").unwrap_err(), ContainerError::Magic);
    let error = Reader::open(&sample()[..100]).unwrap_err();
    assert_eq!(error.to_string(), "truncated: 576 bytes are needed at offset 64, the file has 100");
}
