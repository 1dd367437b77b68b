//! Object files for macOS and Windows, by a linker of this file: their code runs here, called by the conventions of each system, and gives what an object
//! for Linux gives; for 64-bit Arm, whose conventions are the same, linked code is the same bytes.
#![cfg(all(feature = "llvm", feature = "cranelift", target_os = "linux", target_arch = "x86_64"))]

mod tool;

use infc::compile::Options;
use infc::native;
use infc_kernel::backend::Os;
use object::{
    Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationKind, RelocationTarget, SectionKind, elf, macho, pe,
};
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use tool::kit::*;
use tool::*;

/// Where sections of code end and those of data begin, so that sections lie alike however many there are.
const DATA: usize = 1 << 20;
/// All sections.
const ROOM: usize = 4 << 20;

/// A linked object.
struct Linked {
    map: memmap2::MmapMut,
    /// Where code and data end.
    ends: [usize; 2],
    symbols: HashMap<String, usize>,
}

/// A function of the C library by the convention of Windows, which is not the one that this test is compiled with.
unsafe extern "win64" fn memcpy(to: *mut u8, from: *const u8, bytes: usize) -> *mut u8 {
    // Safety: by the caller.
    unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
    to
}

/// Another one.
unsafe extern "win64" fn memset(to: *mut u8, byte: i32, bytes: usize) -> *mut u8 {
    // Safety: by the caller.
    unsafe { std::ptr::write_bytes(to, byte as u8, bytes) };
    to
}

fn library(name: &str, os: Os) -> u64 {
    match (name, os) {
        ("memcpy", Os::Windows) => memcpy as *const () as u64,
        ("memset", Os::Windows) => memset as *const () as u64,
        ("memcpy", _) => libc_address(c"memcpy"),
        ("memset", _) => libc_address(c"memset"),
        _ => panic!("the object needs {name}"),
    }
}

fn libc_address(name: &CStr) -> u64 {
    unsafe extern "C" {
        fn memcpy(to: *mut c_void, from: *const c_void, bytes: usize) -> *mut c_void;
        fn memset(to: *mut c_void, byte: i32, bytes: usize) -> *mut c_void;
    }
    match name.to_bytes() {
        b"memcpy" => memcpy as *const () as u64,
        _ => memset as *const () as u64,
    }
}

/// Puts the sections of an object into memory and resolves its relocations.
fn link(bytes: &[u8], os: Os) -> Linked {
    let file = object::File::parse(bytes).expect("an object file");
    let format = file.format();
    let expected = [object::BinaryFormat::Elf, object::BinaryFormat::MachO, object::BinaryFormat::Coff];
    assert_eq!(format, expected[Os::ALL.iter().position(|&o| o == os).expect("one of them")]);
    let mut map = memmap2::MmapMut::map_anon(ROOM).expect("memory");
    let (mut ends, mut at) = ([0, DATA], HashMap::new());
    for section in file.sections().filter(|s| s.size() > 0) {
        let end = match section.kind() {
            SectionKind::Text => &mut ends[0],
            SectionKind::ReadOnlyData | SectionKind::ReadOnlyString => &mut ends[1],
            SectionKind::Metadata | SectionKind::Other | SectionKind::Linker => continue,
            kind => panic!("{kind:?} of {:?}", section.name()),
        };
        let start = end.next_multiple_of(section.align().max(1) as usize);
        let data = section.data().expect("readable");
        map[start..start + data.len()].copy_from_slice(data);
        *end = start + data.len();
        at.insert(section.index(), start);
    }
    assert!(ends[0] <= DATA && ends[1] < ROOM, "{ends:?}");
    let base = map.as_ptr() as usize;
    let mut stubs = ends[1].next_multiple_of(16);
    let (mut symbols, mut addresses) = (HashMap::new(), HashMap::new());
    for symbol in file.symbols() {
        let name = symbol.name().expect("a name");
        let name = if os == Os::Macos { name.strip_prefix('_').unwrap_or(name) } else { name };
        let start = symbol.section_index().and_then(|s| at.get(&s).map(|start| (s, start)));
        let address = match start {
            Some((section, start)) => {
                let section = file.section_by_index(section).expect("there");
                start + (symbol.address() - section.address()) as usize
            }
            None if symbol.is_undefined() && !name.is_empty() => {
                // `jmp *0(%rip)`, and the address.
                map[stubs..stubs + 6].copy_from_slice(&[0xff, 0x25, 0, 0, 0, 0]);
                map[stubs + 6..stubs + 14].copy_from_slice(&library(name, os).to_le_bytes());
                stubs += 16;
                stubs - 16
            }
            None => continue,
        };
        if symbol.is_global() && symbol.is_definition() {
            symbols.insert(name.to_owned(), address);
        }
        addresses.insert(symbol.index(), address);
    }
    for section in file.sections() {
        let Some(&start) = at.get(&section.index()) else { continue };
        for (offset, r) in section.relocations() {
            let RelocationTarget::Symbol(symbol) = r.target() else { panic!("{r:?}") };
            let place = start + offset as usize;
            let word = i32::from_le_bytes(map[place..place + 4].try_into().expect("four bytes"));
            let to = addresses[&symbol] as i64 + r.addend();
            let resolved = if file.architecture() == object::Architecture::X86_64 {
                assert!(matches!(r.kind(), RelocationKind::Relative | RelocationKind::PltRelative) && r.size() == 32, "{r:?}");
                to + if r.has_implicit_addend() { i64::from(word) } else { 0 } - place as i64
            } else {
                // Pages are counted from an address that has none below.
                assert_eq!(base % 4096, 0);
                i64::from(arm(word as u32, r.flags(), to as u64, place as u64) as i32)
            };
            map[place..place + 4].copy_from_slice(&(resolved as i32).to_le_bytes());
        }
    }
    Linked { map, ends, symbols }
}

/// An instruction of 64-bit Arm with the address, or its distance, in it. (Arm's reference manual, C6.2: ADRP, ADD, LDR, BL.)
fn arm(word: u32, flags: RelocationFlags, to: u64, place: u64) -> u32 {
    let (branch, page) = match flags {
        RelocationFlags::Elf { r_type } => {
            (matches!(r_type, elf::R_AARCH64_CALL26 | elf::R_AARCH64_JUMP26), r_type == elf::R_AARCH64_ADR_PREL_PG_HI21)
        }
        RelocationFlags::MachO { r_type, .. } => (r_type == macho::ARM64_RELOC_BRANCH26, r_type == macho::ARM64_RELOC_PAGE21),
        RelocationFlags::Coff { typ } => (typ == pe::IMAGE_REL_ARM64_BRANCH26, typ == pe::IMAGE_REL_ARM64_PAGEBASE_REL21),
        other => panic!("{other:?}"),
    };
    if branch {
        return word | (to.wrapping_sub(place) >> 2) as u32 & 0x3ff_ffff;
    }
    if page {
        let pages = (to >> 12).wrapping_sub(place >> 12) as u32;
        return word | (pages & 3) << 29 | (pages >> 2 & 0x7_ffff) << 5;
    }
    let low = (to & 0xfff) as u32;
    let load = word >> 27 & 7 == 0b111;
    let add = word >> 23 & 0x3f == 0b10_0010;
    assert!(load != add, "{flags:?} of {word:08x}");
    // The size of an access: bits 30 and 31, or 16 bytes for vectors with bit 23.
    let scale = if !load {
        0
    } else if word >> 26 & 1 == 1 && word >> 23 & 1 == 1 {
        4
    } else {
        word >> 30
    };
    assert_eq!(low % (1 << scale), 0);
    word | low >> scale << 10
}

/// Memory at a multiple of 64.
#[repr(align(64))]
struct Aligned([u8; 1 << 16]);

/// The model of the tests: products, a copy from input to output, state, and an open dim.
fn sums() -> infc_ir::Graph {
    let w = constant("w", &infc_ir::Tensor::from_vec([3, 20], (0..60).map(|i| i as f32 / 7.0 - 4.0).collect::<Vec<f32>>()));
    let nodes = vec![
        node("p = MatMul(x, w)", []),
        node("y = Tanh(p)", []),
        node("c = Identity(x)", []),
        node("t = ReduceSum(x)", [int("keepdims", 0)]),
        node("s2 = Add(s, t)", []),
    ];
    let outputs = ["y f32[n, 20]", "c f32[n, 3]", "s2 f32[40]"];
    import(&model(17, graph(&["x f32[n, 3]", "s f32[40]"], nodes, &outputs, vec![w]))).expect("a good model")
}

fn object_of(machine: &str, os: Os) -> native::Native {
    let mut options = Options::for_target(infc::target::find(machine).expect("a machine"));
    options.bounds = vec![("n".to_owned(), 9)];
    options.states = vec![("s2".to_owned(), "s".to_owned())];
    native::compile(sums(), &options, "sums", os, false).expect("an object")
}

/// Two runs with the state between them; all outputs' bytes, and what statuses mean.
fn outputs(machine: &str, os: Os) -> (Vec<Vec<f32>>, String) {
    let native = object_of(machine, os);
    let linked = link(&native.object.bytes, os);
    let mut names: Vec<_> = linked.symbols.keys().cloned().collect();
    names.sort();
    assert_eq!(names, ["sums_message", "sums_reset", "sums_run"], "{machine} {os:?}");
    let linked = Callable { map: linked.map.make_exec().expect("executable"), symbols: linked.symbols };
    let (mut arena, mut state) = (Box::new(Aligned([0xa5; 1 << 16])), Box::new(Aligned([0xa5; 1 << 16])));
    assert!(native.object.arena_bytes <= 1 << 16 && native.object.state_bytes <= 1 << 16);
    let (arena, state) = (arena.0.as_mut_ptr() as u64, state.0.as_mut_ptr() as u64);
    linked.call("sums_reset", os, [state, 0, 0, 0, 0]);
    let mut all = vec![];
    for n in [7usize, 2] {
        let x: Vec<f32> = (0..3 * n).map(|i| (i as f32 * 0.37).sin()).collect();
        let (mut y, mut c, mut s) = (vec![f32::NAN; 20 * n], vec![f32::NAN; 3 * n], vec![f32::NAN; 40]);
        let inputs = [x.as_ptr() as u64];
        // Behind each output whose size changes is a place for its dims.
        let mut dims = [[0i64; 2]; 2];
        let [to_y, to_c] = &mut dims;
        let outputs = [
            y.as_mut_ptr() as u64,
            to_y.as_mut_ptr() as u64,
            c.as_mut_ptr() as u64,
            to_c.as_mut_ptr() as u64,
            s.as_mut_ptr() as u64,
        ];
        let before = mode();
        let status = linked.call("sums_run", os, [inputs.as_ptr() as u64, outputs.as_ptr() as u64, n as u64, state, arena]);
        assert_eq!((status as i32, mode()), (0, before), "{machine} {os:?}");
        assert_eq!((dims, &c), ([[n as i64, 20], [n as i64, 3]], &x), "{machine} {os:?}");
        all.extend([y, c, s]);
    }
    let bad = linked.call("sums_run", os, [0, 0, 10, state, arena]) as i32;
    let misaligned = linked.call("sums_run", os, [0, 0, 1, state + 4, arena]) as i32;
    assert_eq!((bad, misaligned), (-2, -1));
    let texts = (-2..2).map(|status| {
        let text = linked.call("sums_message", os, [status as u32 as u64, 0, 0, 0, 0]);
        // Safety: the function gives a text of C.
        unsafe { CStr::from_ptr(text as *const c_char) }.to_string_lossy().into_owned()
    });
    let texts: Vec<String> = texts.collect();
    (all, texts.join("; "))
}

/// A linked object that may run.
struct Callable {
    map: memmap2::Mmap,
    symbols: HashMap<String, usize>,
}

impl Callable {
    fn call(&self, name: &str, os: Os, [a, b, c, d, e]: [u64; 5]) -> u64 {
        let address = self.map.as_ptr() as usize + self.symbols[name];
        type SystemV = unsafe extern "sysv64" fn(u64, u64, u64, u64, u64) -> u64;
        type Windows = unsafe extern "win64" fn(u64, u64, u64, u64, u64) -> u64;
        // Safety: the function has these arguments at most, and the callers give it memory as its header says.
        unsafe {
            match os {
                Os::Windows => std::mem::transmute::<usize, Windows>(address)(a, b, c, d, e),
                Os::Linux | Os::Macos => std::mem::transmute::<usize, SystemV>(address)(a, b, c, d, e),
            }
        }
    }
}

/// The floating-point environment.
fn mode() -> u32 {
    let mut mode = 0u32;
    // Safety: writes the four bytes that it is given.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut mode, options(nostack, preserves_flags)) };
    mode & !0x3f // without what has happened so far
}

#[test]
fn objects_for_other_systems_do_what_those_for_linux_do() {
    for machine in ["x86-64-v2", "x86-64-v3", "cranelift-x86-64", "cranelift-x86-64-v3"] {
        let expected = outputs(machine, Os::Linux);
        assert!(expected.0.iter().flatten().all(|v| v.is_finite()) && expected.1.contains("not aligned"), "{expected:?}");
        for os in [Os::Macos, Os::Windows] {
            assert_eq!(outputs(machine, os), expected, "{machine} {os:?}");
        }
    }
}

#[test]
fn code_for_arm_is_the_same_on_all_systems() {
    for machine in ["aarch64", "aarch64-i8mm", "cranelift-aarch64"] {
        let linked = Os::ALL.map(|os| {
            let native = object_of(machine, os);
            let linked = link(&native.object.bytes, os);
            // Behind the data are addresses of this process.
            ([0..linked.ends[0], DATA..linked.ends[1]].map(|part| linked.map[part].to_vec()), linked.symbols)
        });
        for (os, other) in Os::ALL.iter().zip(&linked).skip(1) {
            assert_eq!(other.1, linked[0].1, "{machine} {os:?}");
            for part in 0..2 {
                assert!(other.0[part] == linked[0].0[part] && !other.0[part].is_empty(), "{machine} {os:?}, part {part}");
            }
        }
    }
}

#[test]
fn libraries_are_archives_of_their_system() {
    for os in Os::ALL {
        for machine in ["x86-64-v3", "cranelift-aarch64"] {
            let native = object_of(machine, os);
            let bytes = native.archive();
            let file = object::read::archive::ArchiveFile::parse(&*bytes).expect("an archive");
            let members: Vec<_> = file.members().map(|m| m.expect("a member")).collect();
            assert_eq!(members.len(), 1, "{os:?}");
            let data = members[0].data(&*bytes).expect("its bytes");
            assert_eq!(&data[..native.object.bytes.len()], native.object.bytes, "{os:?}");
            let symbols = file.symbols().expect("readable").expect("an index");
            let mut names: Vec<_> = symbols
                .map(|s| String::from_utf8_lossy(s.expect("a symbol").name()).trim_start_matches('_').to_owned())
                .collect();
            names.sort();
            assert_eq!(names, ["sums_message", "sums_reset", "sums_run"], "{os:?}");
        }
    }
}

#[test]
fn files_are_called_as_on_their_system() {
    let dir = Folder::new();
    let model = dir.model(&add());
    for (os, emit, out) in [
        ("linux", "obj", "model.o"),
        ("macos", "obj", "model.o"),
        ("windows", "obj", "model.obj"),
        ("linux", "staticlib", "libmodel.a"),
        ("macos", "staticlib", "libmodel.a"),
        ("windows", "staticlib", "model.lib"),
    ] {
        let made = std::process::Command::new(env!("CARGO_BIN_EXE_infc"))
            .args(["compile", &model, "--dim", "n=2", "--emit", emit, "--os", os, "--json"])
            .current_dir(dir.0.path())
            .output()
            .expect("it runs");
        let text = String::from_utf8_lossy(&made.stdout).into_owned();
        assert!(made.status.success() && text.contains(&format!("\"{out}\"")), "{os} {emit}: {text}");
        let header = std::fs::read_to_string(dir.path("model.h")).expect("a header");
        let name = Os::ALL.iter().map(|o| o.name()).find(|n| n.eq_ignore_ascii_case(os)).expect("one of them");
        assert!(header.contains(&format!(" on {name}: ")), "{header}");
        std::fs::remove_file(dir.path(out)).expect("there");
    }
    // Functions are called alike, whichever system's ending the file has.
    for (os, emit, out) in [
        ("windows", "obj", "digits.o"),
        ("windows", "obj", "digits.obj"),
        ("linux", "obj", "digits.obj"),
        ("macos", "obj", "digits.o"),
        ("windows", "staticlib", "digits.lib"),
        ("windows", "staticlib", "libdigits.a"),
    ] {
        check(&["compile", &model, "--dim", "n=2", "--emit", emit, "--os", os, "-o", &dir.path(out)], 0, &["digits.h"]);
        if emit == "staticlib" {
            continue;
        }
        let bytes = std::fs::read(dir.path(out)).expect("written");
        let file = object::File::parse(&*bytes).expect("an object file");
        assert!(file.symbols().any(|s| s.name().is_ok_and(|n| n.trim_start_matches('_') == "digits_run")), "{os} {out}");
    }
}

#[test]
fn what_a_system_has_not_is_told() {
    let dir = Folder::new();
    let model = dir.model(&add());
    let compile = |args: &[&str]| {
        [&["compile", &model, "--dim", "n=2", "-o", "x"], args].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let told = |args: &[&str], exit, parts: &[&str]| {
        let args = compile(args);
        check(&args.iter().map(String::as_str).collect::<Vec<_>>(), exit, parts);
        assert_eq!(dir.files(), ["model.onnx"]);
    };
    told(&["--os", "macos"], 2, &["--os is for object files", "any system"]);
    told(&["--os", "macos", "--emit", "c"], 2, &["--os is for object files"]);
    told(&["--os", "beos", "--emit", "obj"], 2, &["beos", "linux", "macos", "windows"]);
    told(&["--os", "macos", "--emit", "obj", "--target", "riscv64"], 3, &["macOS", "Riscv64", "--emit infc"]);
    let args = compile(&["--os", "macos", "--emit", "exe", "--target", "aarch64"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let out = infc_where(("CC", ""), &args);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && text.contains("no C compiler for macOS") && text.contains("set CC"), "{text}");
    let out = infc_where(("CC", "/no/such/compiler --for macos"), &args);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && text.contains("/no/such/compiler") && text.contains("cannot be started"), "{text}");
    assert_eq!(dir.files(), ["model.onnx"]);
}
