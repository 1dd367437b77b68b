//! Artifacts that must not load: damaged, truncated, newer, for another machine, or made up. Each gives an error that says why.

mod kit;

use infc_artifact::container::{Artifact, Kind, Reader, Requirements, Variant};
use infc_artifact::encode::encode;
use infc_artifact::program::*;
use infc_runtime::{Error, ErrorKind, Model, Options, Session};
use kit::*;
use proptest::prelude::*;

fn refused(bytes: &[u8]) -> Error {
    Model::from_bytes(bytes).expect_err("it must not load")
}

#[test]
fn a_changed_byte_in_any_section_is_found() {
    let bytes = file(&affine());
    let reader = Reader::open(&bytes).unwrap();
    let sections = reader.sections().to_vec();
    for section in sections.iter().filter(|s| s.kind != Kind::Constants && s.length > 0) {
        for at in [0, section.length / 2, section.length - 1] {
            let mut changed = bytes.clone();
            changed[(section.offset + at) as usize] ^= 1;
            let error = refused(&changed);
            let expected = format!(
                "damaged or tampered with: the {} at offset {} does not match its digest",
                section.kind.name(),
                section.offset
            );
            assert_eq!((error.kind(), error.to_string()), (ErrorKind::Artifact, expected));
        }
    }
    // Weights are not read when a model is loaded; `check_constants` is for them.
    let mut changed = bytes.clone();
    let constants = reader.section(Kind::Constants, 0).unwrap().offset as usize;
    changed[constants] ^= 1;
    Model::from_bytes(&changed).unwrap();
    assert!(Reader::open(&changed).unwrap().check_constants().is_err());
}

#[test]
fn truncated_files_are_refused_with_their_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut.infc");
    let bytes = file(&affine());
    for end in [0, 1, 7, 8, 63, 64, 100, 447, 448, 500, 70000, bytes.len() - 1] {
        let end = end.min(bytes.len() - 1);
        assert!(refused(&bytes[..end]).to_string().starts_with("truncated: "), "{end}");
        std::fs::write(&path, &bytes[..end]).unwrap();
        let error = Model::open(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Artifact);
        assert!(error.to_string().starts_with(&format!("{}: truncated: ", path.display())), "{error}");
    }
    let missing = dir.path().join("missing.infc");
    assert_eq!(Model::open(&missing).unwrap_err().kind(), ErrorKind::Io);
    assert_eq!(Model::open(dir.path()).unwrap_err().kind(), ErrorKind::Io);
    std::fs::write(&path, "graph { }").unwrap();
    assert!(Model::open(&path).unwrap_err().to_string().ends_with("not an infc artifact (offset 0: wrong first bytes)"));
}

#[test]
fn newer_artifacts_ask_for_a_newer_runtime() {
    let mut bytes = file(&affine());
    bytes[8] = 4;
    let text = refused(&bytes).to_string();
    assert_eq!(text, "made by a newer compiler: format version 4, this runtime knows up to 3; update the runtime");
}

#[test]
fn an_artifact_for_another_machine_names_what_is_missing() {
    let error = refused(&file_for(&affine(), ARCH, &[FEATURE, "avx2048", "telepathy"]));
    assert_eq!(error.kind(), ErrorKind::Machine);
    let all = format!("this CPU lacks avx2048, telepathy (the artifact requires {FEATURE}, avx2048, telepathy)");
    assert!(error.to_string().starts_with(&all));
    let error = refused(&file_for(&affine(), "sparc64", &[]));
    assert!(error.to_string().starts_with(&format!("the artifact is for sparc64, this machine is {ARCH}")), "{error}");
}

/// A variant that needs a feature; its program has an input of the variant's name.
fn variant(feature: &str, name: &str) -> Variant {
    Variant {
        requirements: Requirements { name: name.into(), arch: ARCH.into(), features: vec![feature.into()], host: None },
        program: encode(&Program {
            inputs: vec![port(name, vec![], 0)],
            buffers: vec![buffer(c(4), Place::Input(0))],
            ..Program::default()
        }),
        code: vec![],
        host_code: vec![],
    }
}

fn variants() -> Vec<u8> {
    let all = [variant("avx2048", "future"), variant(FEATURE, "today"), variant(FEATURE, "yesterday")];
    Artifact { variants: &all, ..Artifact::default() }.to_bytes()
}

#[test]
fn the_first_variant_that_fits_is_taken() {
    let model = Model::from_bytes(&variants()).unwrap();
    assert_eq!((model.inputs()[0].name.as_str(), &model.requirements().features[..]), ("today", &[FEATURE.to_string()][..]));
    let empty = Artifact::default().to_bytes();
    assert_eq!(refused(&empty).to_string(), "malformed: the artifact has no program");
}

#[test]
fn a_variant_can_be_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("three.infc");
    std::fs::write(&path, variants()).unwrap();
    let open = |name: &str| Model::open_variant(&path, Some(name));
    assert_eq!(open("yesterday").unwrap().inputs()[0].name, "yesterday");
    assert_eq!(Model::from_bytes_variant(&variants(), Some("today")).unwrap().requirements().name, "today");
    let error = open("future").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Machine);
    assert!(error.to_string().ends_with("variant 'future': this CPU lacks avx2048 (the artifact requires avx2048)"), "{error}");
    let error = open("tomorrow").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage);
    assert!(error.to_string().ends_with("no variant 'tomorrow'; the artifact has 'future', 'today', 'yesterday'"), "{error}");
}

#[test]
fn where_no_variant_fits_each_says_why() {
    let all = [variant("avx2048", "future"), variant("telepathy", "never")];
    let error = refused(&Artifact { variants: &all, ..Artifact::default() }.to_bytes());
    let each = "'future': this CPU lacks avx2048 (the artifact requires avx2048); 'never': this CPU lacks telepathy";
    assert!(error.to_string().starts_with(&format!("this machine can run none of the 2 variants; {each}")), "{error}");
    assert!(error.kind() == ErrorKind::Machine && error.to_string().contains(&format!("this CPU is {ARCH} with ")), "{error}");
}

/// Only the variant that runs is read: damage elsewhere is found by whoever reads it.
#[test]
fn damage_in_another_variant_does_not_matter_here() {
    let mut bytes = variants();
    let program = Reader::open(&bytes).unwrap().section(Kind::Program, 2).unwrap().offset as usize;
    bytes[program] ^= 1;
    assert_eq!(Model::from_bytes(&bytes).unwrap().requirements().name, "today");
    let error = Model::from_bytes_variant(&bytes, Some("yesterday")).unwrap_err().to_string();
    assert!(error.starts_with("damaged or tampered with: the program"), "{error}");
}

#[test]
fn sessions_take_so_many_threads() {
    let model = Model::from_bytes(&file(&affine())).unwrap();
    let with = |threads: usize| Session::new(model.clone(), Options { threads: Some(threads), ..Options::default() });
    let cpus = std::thread::available_parallelism().unwrap().get();
    assert_eq!(with(0).unwrap().threads(), cpus);
    assert_eq!(with(cpus + 3).unwrap().threads(), cpus + 3);
    let error = with(1025).err().unwrap();
    assert_eq!((error.kind(), error.to_string().starts_with("1025 threads were asked for")), (ErrorKind::Usage, true));
}

#[test]
fn programs_that_contradict_themselves_are_refused() {
    let mut program = affine();
    program.steps.push(Step::Copy { from: at(9), to: at(2), bytes: c(1) });
    let text = refused(&file(&program)).to_string();
    assert!(text.starts_with("malformed: step 2: there is no buffer 9 (program at offset "), "{text}");
}

#[test]
fn what_cannot_be_allocated_is_an_error() {
    let mut program = affine();
    program.buffers[4].bytes = Size(vec![SizeOp::Symbol(0), SizeOp::Const(1 << 60), SizeOp::Mul]);
    let mut session = Session::new(Model::from_bytes(&file(&program)).unwrap(), Options::default()).unwrap();
    session.input_mut("x", &[4, 8]).unwrap();
    session.input_mut("bias", &[4]).unwrap();
    let error = session.run().unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::Memory, "out of memory: 4611686018427387904 bytes are needed")
    );
}

/// A file around these bytes as the program, with right digests.
fn around(program: Vec<u8>) -> Vec<u8> {
    let requirements = Requirements { name: "kit".into(), arch: ARCH.into(), features: vec![], host: None };
    let variant = Variant { requirements, program, code: code().0.clone(), host_code: vec![] };
    Artifact { variants: &[variant], constants: &[&[0; 32]], ..Artifact::default() }.to_bytes()
}

proptest! {
    /// With digests made right again, the checks behind them must hold alone.
    #[test]
    fn any_program_loads_or_is_refused(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let mut program = encode(&Program { kernels: code().1.clone(), ..affine() });
        for (at, value) in changes {
            let at = at.index(program.len());
            program[at] = value;
        }
        if let Ok(model) = Model::from_bytes(&around(program)) {
            let _ = Session::new(model, Options::default());
        }
    }

    #[test]
    fn any_header_loads_or_is_refused(at in 0usize..512, value in any::<u8>(), end in any::<prop::sample::Index>()) {
        let mut bytes = file(&affine());
        bytes[at] = value;
        let _ = Model::from_bytes(&bytes);
        bytes.truncate(end.index(bytes.len()));
        let _ = Model::from_bytes(&bytes);
    }

    /// Copies and branches with any offsets stay inside their buffers or are errors.
    #[test]
    fn any_copy_is_safe(copies in prop::collection::vec((0u32..5, 0u32..5, -9i64..99, -9i64..99, -9i64..99, any::<bool>()), 1..6), n in 0i64..9) {
        let sized = |plus: i64, times: bool| if times { Size(vec![SizeOp::Symbol(0), SizeOp::Const(plus), SizeOp::Mul]) } else { c(plus) };
        let view = |buffer, offset, times| View { buffer, offset: sized(offset, times) };
        let copy = |&(a, b, from, to, bytes, times): &(u32, u32, i64, i64, i64, bool)| {
            let copy = Step::Copy { from: view(a, from, times), to: view(b, to, !times), bytes: sized(bytes, times) };
            Step::If { cond: view(b, from, times), then: vec![copy.clone()], otherwise: vec![copy] }
        };
        let mut program = Program { steps: copies.iter().map(copy).collect(), ..affine() };
        program.buffers[4] = arena(rows(), 0, 3 * copies.len() as u32 - 1);
        if let Ok(model) = Model::from_bytes(&file(&program)) {
            let mut session = Session::new(model, Options::default()).unwrap();
            session.input_mut("x", &[n, 8]).unwrap();
            session.input_mut("bias", &[n]).unwrap();
            let _ = session.run();
        }
    }
}

fn rows() -> Size {
    kit::n(4)
}
