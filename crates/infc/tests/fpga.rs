//! Streaming designs from the command line: g++ simulation equals the golden model on 100 inputs, with FIFOs and random stalls; bad input.

mod tool;

use infc_ir::Tensor;
use std::fs;
use std::path::Path;
use std::process::Command;
use tool::kit::*;
use tool::*;

/// Compiles a model and runs its testbench.
#[track_caller]
fn simulate(dir: &Folder, model: &str, options: &[&str], frames: usize) {
    let out = dir.path("design");
    let vectors = frames.to_string();
    let args = [&["compile", model, "--target", "fpga-hls", "--vectors", &vectors, "-o", &out], options].concat();
    let text = check(&args, 0, &["frames a second", "estimated, before any synthesis"]);
    let make = Command::new("make").args(["-s", "-C", &out, "testbench"]).env("CXXFLAGS", "-O1 -Werror").output().expect("make");
    assert!(make.status.success() && make.stderr.is_empty(), "{text}\n{}", String::from_utf8_lossy(&make.stderr));
    let run = Command::new("./testbench").current_dir(&out).output().expect("it starts");
    let said = String::from_utf8_lossy(&[run.stdout, run.stderr].concat()).into_owned();
    assert_eq!(said, format!("ok: {frames} frames, without limits and with FIFOs and random stalls\n"), "{text}");
}

fn example(name: &str) -> (String, String) {
    let folder = examples().join(name);
    (folder.join("model.onnx").display().to_string(), folder.join("eval.npz").display().to_string())
}

/// As large as a network that tags jets: 16, 64, 32, 32, 5.
fn jets(dir: &Folder) -> String {
    let mut state = 1u64;
    let mut weights = |name: &str, dims: [usize; 2]| {
        let mut draw = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let scale = (3.0 / dims[0] as f32).sqrt();
        let values = (0..dims[0] * dims[1]).map(|_| draw() * scale).collect::<Vec<f32>>();
        constant(name, &Tensor::from_vec(dims, values))
    };
    let sizes = [16, 64, 32, 32, 5];
    let (mut nodes, mut constants) = (vec![], vec![]);
    for k in 0..4 {
        let w = weights(&format!("w{k}"), [sizes[k], sizes[k + 1]]);
        constants.extend([w, constant(&format!("b{k}"), &Tensor::from_vec([sizes[k + 1]], vec![0.05f32; sizes[k + 1]]))]);
        let from = if k == 0 { "x".to_owned() } else { format!("r{}", k - 1) };
        let to = if k == 3 { "y".to_owned() } else { format!("a{k}") };
        nodes.push(node(&format!("{to} = Gemm({from}, w{k}, b{k})"), []));
        if k < 3 {
            nodes.push(node(&format!("r{k} = Relu(a{k})"), []));
        }
    }
    dir.model(&model(17, graph(&["x f32[n, 16]"], nodes, &["y f32[n, 5]"], constants)))
}

#[test]
fn a_network_of_dense_layers_is_the_golden_model() {
    let dir = Folder::new();
    let model = jets(&dir);
    simulate(&dir, &model, &["--bits", "8", "--range", "x=-2..2"], 100);
    simulate(&dir, &model, &["--bits", "6", "--range", "x=-2..2", "--io", "parallel", "--machine", "vu9p"], 100);
    let (model, data) = example("digits_mlp");
    simulate(&dir, &model, &["--data", &data, "--budget", "dsp=20,lut=20000,bram=20"], 100);
    let formats = fs::read_to_string(dir.path("design/formats.json")).expect("formats of a float model");
    assert!(formats.contains("sqnr_db"), "{formats}");
}

#[test]
fn the_example_of_convolutions_is_the_golden_model() {
    let dir = Folder::new();
    let (model, data) = example("glyphs_cnn");
    simulate(&dir, &model, &["--data", &data, "--machine", "xc7z020"], 100);
    let page = fs::read_to_string(dir.path("design/report.html")).expect("a report");
    assert!(page.contains("class=\"bar\"") && page.contains("vendor synthesis was not run") && !page.contains("http"), "{page}");
    let source = fs::read_to_string(dir.path("design/model.cpp")).expect("a source");
    for pragma in ["DATAFLOW", "PIPELINE II=1", "UNROLL", "ARRAY_PARTITION", "INTERFACE axis", "STREAM variable="] {
        assert!(source.contains(&format!("#pragma HLS {pragma}")), "{pragma}");
    }
    assert!(!source.contains("new ") && !source.contains("std::"));
    let first = source;
    simulate(&dir, &model, &["--data", &data, "--machine", "xc7z020"], 1);
    assert_eq!(fs::read_to_string(dir.path("design/model.cpp")).expect("a source"), first, "the same input gives the same bytes");
}

/// Takes minutes: `./x hls`.
#[test]
#[ignore = "slow"]
fn real_models_are_the_golden_model() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models");
    let cases: [(&str, &[&str]); 2] = [
        ("ultraface_slim_qdq_u8s8", &["--machine", "zu7ev"]),
        ("espcn_qonnx", &["--machine", "zu7ev", "--input-format", "x.7=u8*0.00392156862"]),
    ];
    for (name, options) in cases {
        let path = shared.join(name).join("model.onnx");
        if !path.exists() {
            println!("left out: {} is not here", path.display());
            continue;
        }
        simulate(&Folder::new(), &path.display().to_string(), options, 100);
    }
}

#[test]
fn what_cannot_be_a_design_is_told() {
    let dir = Folder::new();
    let dense = jets(&dir);
    let out = dir.path("design");
    let refused = |model: &str, args: &[&str], exit: i32, parts: &[&str]| {
        check(&[&["compile", model, "--target", "fpga-hls", "-o", &out], args].concat(), exit, parts);
        assert_eq!(dir.files(), ["model.onnx"], "nothing half-written");
    };
    let range = ["--range", "x=-2..2"];
    let with = |args: &[&'static str]| [&range[..], args].concat();
    refused(&dense, &with(&["--machine", "xc7z999"]), 2, &["xc7z999", "xc7z020", "zu7ev", "vu9p", "FILE.toml"]);
    refused(&dense, &with(&["--budget", "dsp=5,brams=3"]), 2, &["'brams' is no resource", "dsp, lut and bram"]);
    refused(&dense, &with(&["--budget", "lut=500"]), 3, &["does not fit", "lut"]);
    refused(&dense, &with(&["--target-fps", "1e9"]), 3, &["frames a second"]);
    refused(&dense, &with(&["--dim", "n<=4"]), 2, &["hardware has fixed sizes", "--dim n=4"]);
    refused(&dense, &with(&["--threads", "2"]), 2, &["not for streaming designs"]);
    refused(&dense, &with(&["--emit", "obj"]), 2, &["--emit hls"]);
    refused(&dense, &with(&["--data", "none.npz"]), 4, &["none.npz"]);
    refused(&dense, &["--range", "x=2..-2"], 2, &["not less"]);
    refused(&dense, &["--bits", "12", "--range", "x=-2..2"], 3, &["12", "2 to 8"]);
    let (big, _) = example("snippets_transformer");
    refused(&big, &["--dim", "length=8"], 3, &["error"]);
    // A part whose tool unrolls nearly nothing.
    let other = Folder::new();
    let part = "name = \"tiny\"\ndoc = \"a part\"\npart = \"tiny-1\"\ndsp = 200\nlut = 90000\nff = 90000\nbram = 100\ndsp_width = [25, 18]\nclock_ns = 10.0\nmax_unroll = 12\n";
    let tiny = other.write("tiny.toml", part);
    refused(
        &dense,
        &["--range", "x=-2..2", "--io", "parallel", "--machine", &tiny],
        3,
        &["input 'x'", "16 elements", "--io stream"],
    );
    let wrong = other.write("wrong.toml", part.replace("clock_ns = 10.0", "clock_ns = -1.0"));
    refused(&dense, &["--range", "x=-2..2", "--machine", &wrong], 2, &["clock_ns"]);
    let open = model(17, graph(&["x f32[n, m]"], vec![node("y = Relu(x)", [])], &["y f32[n, m]"], vec![]));
    let open = dir.model(&open);
    refused(&open, &["--range", "x=-2..2"], 3, &["m"]);
    let sorted = model(
        17,
        graph(
            &["x f32[n, 8]"],
            vec![node("y, i = TopK(x, k)", [])],
            &["y f32[n, 2]"],
            vec![constant("k", &Tensor::from_vec([1], vec![2i64]))],
        ),
    );
    let sorted = dir.model(&sorted);
    refused(&sorted, &["--range", "x=-2..2"], 3, &["TopK"]);
    check(&["compile", &sorted, "--machine", "vu9p"], 2, &["--machine is for streaming designs", "--target fpga-hls"]);
}
