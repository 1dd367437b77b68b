//! The command line from outside: what it prints, exit codes, and that nothing half-written is left behind.

mod tool;

use infc_ir::Tensor;
use prost::Message;
use std::fs;
use tool::kit::*;
use tool::*;

#[test]
fn usage_errors_exit_with_2() {
    check(&["nonsense"], 2, &["unrecognized subcommand"]);
    check(&["verify"], 2, &["required"]);
    check(&["verify", "x", "--backend", "abacus"], 2, &["this build has interp"]);
    check(&["compile", "x.onnx", "--target", "pdp11"], 2, &["there is no such target", "x86-64-v3"]);
    check(&["compile", "x.onnx", "--dim", "batch"], 2, &["NAME=SIZE"]);
    let model = examples().join("digits_mlp/model.onnx").display().to_string();
    check(&["compile", &model, "--print-after", "magic"], 2, &["no pass 'magic'"]);
}

#[test]
fn help_and_lists() {
    check(&["--version"], 0, &["backends: interp", "llvm"]);
    check(&["--help"], 0, &["compile", "verify", "Exit codes"]);
    check(&["ops", "celu"], 0, &["Celu"]);
    check(&["ops", "abacus"], 0, &["no operator has 'abacus' in its name"]);
    check(&["ops", "--gaps"], 0, &["no operator is missing"]);
    check(
        &["ops", "--json", "softmax"],
        0,
        &["\"supported\":true", "\"how\":\"decomposed\"", "\"opsets\":[1,28]", "\"versions\":[1,11,13]"],
    );
    check(&["ops", "upsample"], 0, &["raised", "1-9", "is Resize of operator set 10"]);
    check(&["passes"], 0, &["fold", "pipeline:"]);
    check(&["targets"], 0, &["x86-64-v3", "interp"]);
    check(&["completions", "bash"], 0, &["_infc"]);
}

#[test]
fn files_that_cannot_be_read_or_written_exit_with_4() {
    let dir = Folder::new();
    let model = dir.model(&add());
    check(&["compile", &dir.path("gone.onnx")], 4, &["gone.onnx", "check the path"]);
    check(&["compile", &dir.path("")], 4, &["is a folder"]);
    check(&["verify", &dir.path("gone")], 4, &["gone"]);
    check(&["compile", &model, "-o", &dir.path("no/such/folder/out.infc")], 4, &["its folder does not exist", "no/such/folder"]);
    check(&["verify", &model, "--gaps", &dir.path("gone")], 4, &["gone", "check the path"]);
    check(&["convert", &model, &dir.path("no/such/folder/out.onnx")], 4, &["no/such/folder"]);
    assert_eq!(dir.files(), ["model.onnx"]);
}

#[test]
fn truncated_and_foreign_files_are_refused() {
    let dir = Folder::new();
    let bytes = add().encode_to_vec();
    check(&["compile", &dir.write("a.onnx", &bytes[..bytes.len() / 2])], 3, &["a.onnx"]);
    check(&["compile", &dir.write("b.onnx", b"hello, this is no protobuf")], 3, &["b.onnx"]);
    check(&["compile", &dir.write("c.onnx", b"")], 3, &["c.onnx"]);
}

#[test]
fn unknown_operators_and_domains_are_all_listed() {
    let nodes = vec![node("a = Frobnicate(x)", []), node("b = my.domain:Thing(x)", []), node("y = Add(a, b)", [])];
    refused(&model(17, graph(&["x f32[3]"], nodes, &["y f32[3]"], vec![])), &["Frobnicate", "my.domain", "Thing", "2 problems"]);
}

#[test]
fn wrong_dtypes_and_shapes_name_the_node() {
    let g = graph(&["x i32[3]"], vec![node("y = Exp(x)", [])], &["y i32[3]"], vec![]);
    refused(&model(17, g), &["Exp 'n_y' (opset 17)", "i32"]);
    let g = graph(&["a f32[2, 3]", "b f32[4, 5]"], vec![node("y = MatMul(a, b)", [])], &["y f32[2, 5]"], vec![]);
    refused(&model(17, g), &["MatMul 'n_y' (opset 17)", "3", "4"]);
}

#[test]
fn cycles_are_named() {
    let nodes = vec![node("a = Add(x, b)", []), node("b = Neg(a)", [])];
    refused(&model(17, graph(&["x f32[2]"], nodes, &["b f32[2]"], vec![])), &["cycle", "n_a", "n_b", "help"]);
}

#[test]
fn external_data_must_be_there_and_inside() {
    refused(&external("weights.bin"), &["weights.bin", "beside the model"]);
    refused(&external("../../etc/passwd"), &["../../etc/passwd", "folder"]);
    refused(&external("/etc/passwd"), &["/etc/passwd"]);
}

#[test]
fn dims_and_states_must_exist() {
    let dir = Folder::new();
    let model = dir.model(&add());
    check(&["compile", &model, "-o", &dir.path("o.infc"), "--dim", "batch=2"], 3, &["dim 'batch'", "it has n"]);
    check(&["compile", &model, "-o", &dir.path("o.infc"), "--state", "y=q"], 3, &["no input 'q'"]);
    assert_eq!(dir.files(), ["model.onnx"]);
}

#[test]
#[cfg(feature = "llvm")]
fn sizes_and_values_are_given_once_to_what_there_is() {
    let dir = Folder::new();
    let (model, out, fixed) = (dir.model(&add()), dir.path("out.infc"), dir.path("fixed.infc"));
    check(&["compile", &model, "-o", &out], 0, &[]);
    check(&["compile", &model, "-o", &fixed, "--dim", "n=2"], 0, &[]);
    for command in ["run", "bench", "profile"] {
        check(&[command, &out, "--dim", "m=2"], 2, &["no such symbolic dim", "its open dims are n"]);
        check(&[command, &fixed, "--dim", "n=3"], 2, &["was compiled with n=2"]);
        check(&[command, &out, "--dim", "n=2", "--dim", "n=3"], 2, &["--dim n is given twice"]);
    }
    check(&["run", &fixed, "--dim", "n=2"], 0, &["f32[2, 3]"]);
    check(&["verify", &model, "--dim", "m=2"], 1, &["no such symbolic dim"]);
    let input = format!("x={}", dir.write("x.npy", npy(&Tensor::from_vec([2, 3], vec![1f32; 6]))));
    check(&["run", &out, "--input", &input, "--dim", "n=3"], 2, &["input 'x' has 2 there"]);
    check(&["run", &out, "--input", &input, "--input", "x=zeros"], 2, &["given twice"]);
    for command in ["compile", "verify", "convert", "quantize"] {
        let more: &[&str] = match command {
            "compile" | "quantize" => &["-o", "other"],
            "convert" => &["other"],
            _ => &[],
        };
        let exit = if command == "verify" { 1 } else { 3 };
        check(&[&[command, &out][..], more].concat(), exit, &["is an artifact of infc, and a model is needed"]);
    }
    check(&["verify", &model, "--artifact", &model], 3, &["give an artifact, which `infc compile` makes"]);
}

#[test]
#[cfg(feature = "llvm")]
fn outputs_have_files_of_their_own() {
    let dir = Folder::new();
    let nodes = vec![node("a/b = Neg(x)", []), node("a_b = Abs(x)", [])];
    let model = dir.model(&model(17, graph(&["x f32[2]"], nodes, &["a/b f32[2]", "a_b f32[2]"], vec![])));
    let input = format!("x={}", dir.write("x.npy", npy(&Tensor::from_vec([2], vec![1f32, -2.0]))));
    let exe = dir.path("exe");
    check(&["compile", &model, "--emit", "exe", "-o", &exe], 0, &[]);
    check(&["run", &model, "--input", &input, "--output-dir", &dir.path("run")], 0, &[]);
    fs::create_dir(dir.path("exe_out")).expect("writable");
    let made = std::process::Command::new(&exe).args([&input, "--output-dir", &dir.path("exe_out")]).status().expect("it starts");
    assert!(made.success());
    for folder in ["run", "exe_out"] {
        for (file, want) in [("a_b", [1.0, 2.0]), ("a_b_2", [-1.0, 2.0])] {
            let bytes = fs::read(dir.path(&format!("{folder}/{file}.npy"))).expect("written");
            assert_eq!(infc::npy::read(&bytes).expect("a tensor").to_vec::<f32>(), want, "{folder}/{file}");
        }
    }
}

#[test]
#[cfg(feature = "llvm")]
fn labels_name_each_element_of_a_batch() {
    let dir = Folder::new();
    let (model, labels) = (dir.model(&add()), dir.write("labels.txt", "cat\ndog\nowl\n"));
    let x = format!("x={}", dir.write("x.npy", npy(&Tensor::from_vec([2, 3], vec![9f32, 0.0, 0.0, 0.0, 0.0, 9.0]))));
    check(&["run", &model, "--input", &x, "--labels", &labels], 0, &["it is 'cat'", "it is 'owl'"]);
    let four = dir.write("four.txt", "a\nb\nc\nd\n");
    check(&["run", &model, "--input", &x, "--labels", &four], 2, &["the file has 4 labels", "f32[2, 3]"]);
    check(&["run", &model, "--labels", &dir.path("gone")], 4, &["gone"]);
}

#[test]
#[cfg(target_os = "linux")]
fn output_that_cannot_be_written_is_told() {
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    let child = std::process::Command::new(env!("CARGO_BIN_EXE_infc")).arg("ops").stdout(full()).output().expect("it starts");
    assert_eq!(child.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&child.stderr).contains("standard output"), "{child:?}");
}

#[test]
#[cfg(feature = "llvm")]
fn compile_run_bench_inspect() {
    let dir = Folder::new();
    let (model, out) = (dir.model(&add()), dir.path("out.infc"));
    check(&["compile", &model, "-o", &out], 0, &["out.infc"]);
    let x = dir.write("x.npy", npy(&Tensor::from_vec([2, 3], vec![1f32, 2.0, 3.0, 4.0, 5.0, 6.0])));
    let input = format!("x={x}");
    check(&["run", &out, "--input", &input, "--output-dir", &dir.path("got")], 0, &["y: f32[2, 3] = 2 4 6 5 7 9"]);
    let y = infc::npy::read(&fs::read(dir.path("got/y.npy")).expect("written")).expect("a tensor");
    assert_eq!(y.to_vec::<f32>(), [2.0, 4.0, 6.0, 5.0, 7.0, 9.0]);
    let keys = ["load_ms", "first_ms", "min_ms", "median_ms", "p99_ms", "peak_mib"];
    check(&["bench", &out, "--seconds", "0", "--json"], 0, &keys);
    check(&["bench", &model, "--seconds", "0", "--json"], 0, &keys);
    check(&["profile", &model, "--seconds", "0"], 0, &["GFLOP/s", "elementwise order=", "Add 'n_y'", "steps in"]);
    check(
        &["profile", &model, "--seconds", "0", "--json"],
        0,
        &["\"total_ms\"", "\"operations\"", "\"kernel\"", "\"of_peak\"", "\"f32_gflops\""],
    );
    check(&["profile", &model, "--seconds", "0", "--html", &dir.path("page.html")], 0, &["% peak", "one thread of this machine"]);
    let page = fs::read_to_string(dir.path("page.html")).expect("written");
    for part in ["<h2>Timeline", "<h2>Roofline", "n_y", "</html>"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    // An artifact has kernels' names and times; with notes, all that the model has.
    let told = check(&["profile", &out, "--seconds", "0"], 0, &["Add", "steps in", "says neither nodes nor plans", "--notes"]);
    assert!(!told.contains("elementwise") && !told.contains("n_y"), "{told}");
    let unknown = ["\"plan\":null", "\"node\":null", "\"operations\":null", "\"of_peak\":null", "\"missing\":\"this artifact"];
    check(&["profile", &out, "--seconds", "0", "--json", "--html", &dir.path("bare.html")], 0, &unknown);
    assert!(fs::read_to_string(dir.path("bare.html")).expect("written").contains("says neither nodes nor plans"));
    let noted = dir.path("noted.infc");
    check(&["compile", &model, "-o", &noted, "--notes"], 0, &[]);
    check(&["inspect", &noted, "--check"], 0, &["all digests match"]);
    let all = ["elementwise order=", "Add 'n_y'", "\"missing\":null", "\"operations\":15.0", "\"bytes\":132.0"];
    check(&["profile", &noted, "--seconds", "0", "--json", "--dim", "n=5", "--html", &dir.path("page.html")], 0, &all);
    assert!(fs::read_to_string(dir.path("page.html")).expect("written").contains("n_y"));
    check(&["profile", &noted, "--seconds", "0", "--cpu", "x86-64-v4,x86-64-v3"], 2, &["one variant at a time"]);
    check(&["compile", &model, "-o", &noted, "--notes", "--emit", "obj"], 2, &["--notes are stored in artifacts"]);
    check(&["machine", "--seconds", "0", "--threads", "2"], 0, &["GFLOP/s", "reading from L1", "2 threads beside one"]);
    check(&["machine", "--seconds", "0", "--json"], 0, &["\"read\"", "\"memory\""]);
    check(&["machine", "--seconds", "0", "--threads", "500"], 0, &["500 threads beside one", "500 threads take turns"]);
    check(&["machine", "--threads", "1025"], 2, &["1025 is not in 0..=1024"]);
    check(&["machine", "--seconds", "nan"], 2, &["--seconds"]);
    check(&["inspect", &out], 0, &["input 'x': f32[n, 3]", "output 'y'"]);
    check(&["inspect", &out, "--check"], 0, &["all digests match"]);
    check(&["inspect", &model, "--json"], 0, &["\"Add\":1"]);
    check(&["verify", &model, "--backend", "llvm", "--dim", "n=5"], 0, &["1 passed, 0 failed"]);
    let first = fs::read(&out).expect("written");
    check(&["compile", &model, "-o", &out], 0, &[]);
    assert_eq!(fs::read(&out).expect("written"), first, "the same compile gives the same bytes");
}

#[test]
#[cfg(feature = "llvm")]
fn threads_are_those_compiled_for_unless_told() {
    let dir = Folder::new();
    let (model, out) = (dir.model(&add()), dir.path("out.infc"));
    for (compiled, told, expected) in
        [("", "", 1), ("--threads=3", "", 3), ("--threads=3", "--threads=2", 2), ("--threads=1", "", 1)]
    {
        let with = |more: &'static str| (!more.is_empty()).then_some(more);
        let args: Vec<&str> = ["compile", &model, "-o", &out].into_iter().chain(with(compiled)).collect();
        check(&args, 0, &[]);
        let args: Vec<&str> = ["bench", &out, "--seconds=0", "--json"].into_iter().chain(with(told)).collect();
        check(&args, 0, &[&format!("\"threads\":{expected},")]);
        check(&["inspect", &out], 0, &[if compiled.is_empty() { "compiled" } else { "threads" }]);
    }
    check(&["compile", &model, "-o", &out, "--threads", "2000"], 2, &["0..=1024"]);
    check(
        &["compile", &model, "-o", &out, "--threads", "2", "--emit", "obj", "--dim", "n=1"],
        2,
        &["object files", "one thread"],
    );
}

#[test]
#[cfg(feature = "llvm")]
fn artifacts_that_do_not_fit_are_refused() {
    let dir = Folder::new();
    let (model, out) = (dir.model(&add()), dir.path("out.infc"));
    check(&["compile", &model, "-o", &out], 0, &[]);
    let good = fs::read(&out).expect("written");
    let with = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        dir.write(name, bytes)
    };
    check(&["run", &with("cut.infc", &|b| b.truncate(b.len() / 2))], 3, &["cut.infc", "truncated"]);
    check(&["run", &with("empty.infc", &|b| b.clear())], 3, &["empty.infc"]);
    check(&["run", &with("newer.infc", &|b| b[8] = 99)], 3, &["newer"]);
    // The last byte of the header's table entries is part of a digest.
    check(&["run", &with("tampered.infc", &|b| b[100] ^= 1)], 3, &["tampered.infc"]);
    check(&["inspect", &with("not.infc", &|b| b[0] = b'x')], 3, &["not an infc artifact"]);
    let board = "name = \"board\"\nbackend = \"llvm\"\ndoc = \"\"\narch = \"sparc64\"\nfeatures = [\"vis3\"]\nvector_bytes = 16\n\
                 vector_registers = 32\nfma = true\nl1_bytes = 32768\nl2_bytes = 1\nl3_bytes = 1\n";
    let machine = dir.write("board.toml", board);
    check(&["compile", &model, "--target", &machine], 3, &["board.toml", "no code for 'sparc64'", "x86_64, aarch64, riscv64"]);
    for arch in ["aarch64", "x86_64"] {
        let machine = dir.write("board.toml", board.replace("sparc64", arch));
        check(&["compile", &model, "--target", &machine], 3, &["board.toml", "features vis3"]);
    }
    // Instructions that the backend does not have for that architecture.
    let board = board.replace("sparc64", "riscv64").replace("vis3", "v") + "byte_dot = true\nlookup = 2\n";
    let machine = dir.write("board.toml", board);
    check(&["compile", &model, "--target", &machine], 3, &["board.toml", "no instructions of riscv64 for byte_dot, lookup"]);
    check(&["compile", &model, "--target", &dir.write("bad.toml", "name = 3")], 3, &["bad.toml"]);
    check(&["compile", &model, "--target", &dir.path("gone.toml")], 4, &["gone.toml"]);
}

#[test]
#[cfg(feature = "llvm")]
fn wrong_inputs_at_run_time_are_refused() {
    let dir = Folder::new();
    let (model, out) = (dir.model(&add()), dir.path("out.infc"));
    check(&["compile", &model, "-o", &out], 0, &[]);
    let run = |tensor: &Tensor, parts: &[&str]| {
        let input = format!("x={}", dir.write("x.npy", npy(tensor)));
        check(&["run", &out, "--input", &input], 3, parts);
    };
    run(&Tensor::from_vec([2, 4], vec![0f32; 8]), &["'x'", "4"]);
    run(&Tensor::from_vec([3], vec![0f32; 3]), &["'x'"]);
    run(&Tensor::from_vec([2, 3], vec![0f64; 6]), &["'x'", "f64"]);
    check(&["run", &out, "--input", "z=zeros"], 2, &["no input 'z'", "'x': f32[n, 3]"]);
    check(&["run", &out, "--input", &format!("x={}", dir.path("gone.npy"))], 4, &["gone.npy", "check the path"]);
    check(&["run", &out, "--input", &format!("x={}", dir.write("bad.npy", b"no"))], 3, &["bad.npy", "not a .npy file"]);
}

#[test]
#[cfg(feature = "llvm")]
fn sizes_that_operators_need_are_checked_at_run_time() {
    let dir = Folder::new();
    let body = |name: &str, call: &str| body(name, graph(&[], vec![node(call, [])], &["b f32[?, ?]"], vec![]));
    let branches = [body("then_branch", "b = Squeeze(x, one)"), body("else_branch", "b = Identity(x)")];
    let nodes = vec![
        node("d = Shape(x)", [int("start", 1), int("end", 2)]),
        node("c = Equal(d, one)", []),
        node("s = If(c)", branches),
        node("y = Gemm(s, w)", []),
        node("z = Add(x, v)", []),
    ];
    let constants = vec![constant("one", &Tensor::from_ints(&[1])), constant("w", &Tensor::from_vec([3, 2], vec![1f32; 6]))];
    let inputs = ["x f32[n, k, 3]", "v f32[m]"];
    let m = model(17, graph(&inputs, nodes, &["y f32[n, 2]", "z f32[?, ?, ?]"], constants));
    let (model, out) = (dir.model(&m), dir.path("out.infc"));
    check(&["compile", &model, "-o", &out], 0, &[]);
    let run = |k: usize, m: usize, exit: i32, parts: &[&str]| {
        let x = dir.write("x.npy", npy(&Tensor::from_vec([2, k, 3], vec![1f32; 6 * k])));
        let v = dir.write("v.npy", npy(&Tensor::from_vec([m], vec![1f32; m])));
        check(&["run", &out, "--input", &format!("x={x}"), "--input", &format!("v={v}")], exit, parts);
    };
    run(1, 3, 0, &["y: f32[2, 2] = 3 3"]);
    run(1, 1, 0, &["z: f32[2, 1, 3] = 2 2"]);
    run(2, 3, 3, &["Squeeze 'n_b' (opset 17)", "dim 1 is taken out, so it must be 1 (2 and 1)"]);
    run(1, 2, 3, &["Add 'n_z' (opset 17)", "must broadcast"]);
    let fixed = ["compile", &model, "-o", &dir.path("o.infc"), "--dim", "k=2", "--dim", "m=2"];
    check(&fixed, 3, &["Squeeze 'n_b'", "If 'n_s'", "Add 'n_z'", "3 problems"]);
}

#[test]
#[cfg(feature = "llvm")]
fn sizes_that_bodies_need_are_checked_where_they_run() {
    let dir = Folder::new();
    // Two networks by a flag: one squeezes a dim where it is 1, in an If of its own; the other adds what must broadcast.
    let inner = |name: &str, call: &str| body(name, graph(&[], vec![node(call, [])], &["b f32[?, ?]"], vec![]));
    let branches = [inner("then_branch", "b = Squeeze(x, one)"), inner("else_branch", "b = Identity(x)")];
    let then = vec![
        node("d = Shape(x)", [int("start", 1), int("end", 2)]),
        node("c = Equal(d, one)", []),
        node("s = If(c)", branches),
        node("t = Gemm(s, w)", []),
    ];
    let other =
        vec![node("a = Add(x, v)", []), node("sum = ReduceSum(a, one)", [int("keepdims", 0)]), node("e = MatMul(sum, w)", [])];
    let branches = [
        body("then_branch", graph(&[], then, &["t f32[?, 2]"], vec![])),
        body("else_branch", graph(&[], other, &["e f32[?, 2]"], vec![])),
    ];
    let constants = vec![constant("one", &Tensor::from_ints(&[1])), constant("w", &Tensor::from_vec([3, 2], vec![1f32; 6]))];
    let inputs = ["x f32[n, k, 3]", "v f32[m]", "f bool[]"];
    let m = model(17, graph(&inputs, vec![node("y = If(f)", branches)], &["y f32[?, 2]"], constants));
    let (model, out) = (dir.model(&m), dir.path("out.infc"));
    check(&["compile", &model, "-o", &out], 0, &[]);
    let run = |k: usize, m: usize, flag: bool, exit: i32, parts: &[&str]| {
        let x = format!("x={}", dir.write("x.npy", npy(&Tensor::from_vec([2, k, 3], vec![1f32; 6 * k]))));
        let v = format!("v={}", dir.write("v.npy", npy(&Tensor::from_vec([m], vec![1f32; m]))));
        let f = format!("f={}", dir.write("f.npy", npy(&Tensor::from_bools([], &[flag]))));
        check(&["run", &out, "--input", &x, "--input", &v, "--input", &f], exit, parts);
    };
    run(1, 2, true, 0, &["y: f32[2, 2] = 3 3"]);
    run(2, 3, false, 0, &["y: f32[2, 2] = 12 12"]);
    run(2, 3, true, 3, &["'n_s' (If, opset 17)", "its condition is false"]);
    run(1, 2, false, 3, &["Add 'n_a' (opset 17)", "must broadcast"]);
}

#[test]
fn verify_counts_and_names_what_is_wrong() {
    let dir = Folder::new();
    let set = dir.0.path().join("a/test_data_set_0");
    fs::create_dir_all(&set).expect("writable");
    fs::create_dir_all(dir.0.path().join("b")).expect("writable");
    let pb = |name: &str, values: [f32; 3]| infc_onnx::write_tensor_proto(name, &Tensor::from_vec([1, 3], values.to_vec()));
    dir.write("a/model.onnx", add().encode_to_vec());
    dir.write("b/model.onnx", add().encode_to_vec());
    // A layout in which nothing is found to compare is no success.
    check(&["verify", &dir.path("")], 1, &["no stored outputs", "nothing was compared", "test_data_set_0/{input,output}_0.pb"]);
    dir.write("a/test_data_set_0/input_0.pb", pb("x", [1.0, 1.0, 1.0]));
    dir.write("a/test_data_set_0/output_0.pb", pb("y", [2.0, 3.0, 4.0]));
    check(&["verify", &dir.path("")], 0, &["no stored outputs", "1 passed, 0 failed"]);
    dir.write("a/test_data_set_0/output_0.pb", pb("y", [2.0, 3.5, 4.0]));
    check(&["verify", &dir.path("")], 1, &["FAIL", "test_data_set_0: y[0, 1]: is 3 instead of 3.5", "0 passed, 1 failed"]);
    let parts = ["stored and interp part at output 'y', made by Add 'n_y' (opset 17)"];
    check(&["verify", &dir.path(""), "--bisect"], 1, &parts);
    check(&["verify", &dir.path(""), "--atol", "1"], 0, &["1 passed, 0 failed"]);
    dir.write("a/tol.json", "{\"rtol\": 0.2, \"atol\": 0}");
    check(&["verify", &dir.path(""), "--json"], 0, &["\"passed\":1", "\"no_outputs\""]);
    dir.write("a/tol.json", "{\"rtol\": \"much\"}");
    check(&["verify", &dir.path("")], 3, &["tol.json", "rtol"]);
    dir.write("a/tol.json", "{}");
    dir.write("a/test_data_set_0/input_1.pb", pb("z", [0.0; 3]));
    check(&["verify", &dir.path("")], 1, &["holds 2 inputs, the model has 1"]);
}

#[test]
fn own_models_pass_in_the_interpreter() {
    let models = examples().display().to_string();
    check(&["verify", &models, "--backend", "interp"], 0, &["4 passed, 0 failed"]);
}

#[test]
fn convert_keeps_what_a_model_means() {
    let dir = Folder::new();
    fs::create_dir_all(dir.0.path().join("m/test_data_set_0")).expect("writable");
    let source = examples().join("language_gru");
    for file in ["input_0.pb", "output_0.pb"] {
        let to = dir.path(&format!("m/test_data_set_0/{file}"));
        fs::copy(source.join("test_data_set_0").join(file), to).expect("a copy");
    }
    let model = source.join("model.onnx").display().to_string();
    for more in [&[][..], &["--simplify"]] {
        let out = dir.path("m/model.onnx");
        check(&[&["convert", &model, &out][..], more].concat(), 0, &["nodes"]);
        check(&["verify", &dir.path("m")], 0, &["1 passed, 0 failed"]);
    }
}

#[cfg(feature = "llvm")]
#[test]
fn the_llvm_that_is_used() {
    let (dir, model) = (Folder::new(), examples().join("digits_mlp/model.onnx").display().to_string());
    let text = |out: std::process::Output| [out.stdout, out.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
    // What is named is taken, or nothing.
    for (file, words) in [("/nowhere/libLLVM.so", "cannot open"), ("libc.so.6", "does not tell its version")] {
        let named = ("INFC_LLVM", file);
        let out = infc_where(named, &["compile", &model, "-o", &dir.path("x.infc")]);
        assert_eq!(out.status.code(), Some(3));
        let said = text(out);
        assert!([file, words, "version 19 to 22", "INFC_LLVM"].iter().all(|w| said.contains(w)), "{said}");
        let said = text(infc_where(named, &["targets"]));
        assert!(said.contains("the llvm backend makes no code here") && said.contains(words), "{said}");
        let backend = ["compile", &model, "--target", "cranelift-x86-64-v3", "-o", &dir.path("c.infc")];
        #[cfg(feature = "cranelift")]
        assert_eq!(infc_where(named, &backend).status.code(), Some(0));
    }
    let found = infc_cpu_llvm::llvm().expect("there is one");
    check(&["targets"], 0, &[&format!("code of the llvm backend is made by {} ({})", found.version, found.file)]);
    check(&["compile", &model, "-o", &dir.path("x.infc")], 0, &[]);
    check(&["inspect", &dir.path("x.infc")], 0, &[&format!("with {} for", found.version)]);
}
