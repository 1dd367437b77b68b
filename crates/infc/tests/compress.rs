//! Compression on the command line: an example model calibrated, quantised and compared, and each documented error.

mod tool;

use infc_ir::Tensor;
use std::fs;
use tool::*;

fn model() -> String {
    examples().join("digits_mlp/model.onnx").display().to_string()
}

fn data() -> String {
    examples().join("digits_mlp/eval.npz").display().to_string()
}

#[test]
fn a_model_is_quantised_and_compared() {
    let dir = Folder::new();
    let (model, data) = (model(), data());
    let (ranges, out, page, figures) = (dir.path("ranges.json"), dir.path("q.onnx"), dir.path("r.html"), dir.path("r.json"));
    check(&["calibrate", &model, "--data", &data, "--samples", "20", "-o", &ranges], 0, &["ranges of 3 values over 20 samples"]);
    check(&["quantize", &model, "--ranges", &ranges, "-o", &out], 0, &["q.onnx", "smaller"]);
    let report = ["--report", &page, "--report", &figures];
    let quantise = ["quantize", &model, "--data", &data, "--samples", "60", "-o", &out];
    check(&[&quantise[..], &report[..]].concat(), 0, &["0.0 % of them in float", "accuracy", "output 'logits'"]);
    let html = fs::read_to_string(&page).expect("written");
    assert!(html.contains("<svg") && !html.contains("<script src") && !html.contains("href=\"http"), "a page by itself");
    let json: serde_json::Value = serde_json::from_str(&fs::read_to_string(&figures).expect("written")).expect("JSON");
    let step = &json["steps"][0];
    assert!(step["outputs"][0]["sqnr_db"].as_f64().expect("a number") > 25.0);
    assert!(step["accuracy"][1].as_f64().expect("a number") > 0.97);
    assert_eq!(step["layers"].as_array().expect("layers").len(), 3);
    check(
        &["compare", &model, &out, "--data", &data, "--samples", "50", "--layers"],
        0,
        &["SQNR", "logits", "inner values", "accuracy"],
    );
    check(&["compare", &model, &out, "--data", &data, "--samples", "50", "--min-sqnr", "90"], 1, &["below the limit"]);
    let artifact = dir.path("q.infc");
    check(&["compile", &out, "-o", &artifact], 0, &["q.infc"]);
    check(&["compare", &out, &artifact, "--data", &data, "--samples", "20", "--min-sqnr", "300"], 0, &["inf"]);
    // Weights alone, without data.
    check(&["quantize", &model, "--scheme", "int4", "-o", &out], 0, &["smaller"]);
    check(&["compare", &model, &out, "--data", &data, "--samples", "50", "--min-sqnr", "10"], 0, &["logits"]);
}

#[test]
fn what_is_wrong_is_told() {
    let dir = Folder::new();
    let (model, data, out) = (model(), data(), dir.path("q.onnx"));
    let other = examples().join("glyphs_cnn/model.onnx").display().to_string();
    let quantise =
        |more: &[&str], exit: i32, words: &[&str]| check(&[&["quantize", &model, "-o", &out], more].concat(), exit, words);
    quantise(&["--scheme", "static"], 3, &["ranges of activations", "--data"]);
    quantise(&["--data", &dir.path("gone.npz")], 4, &["gone.npz"]);
    quantise(&["--data", &data, "--samples", "0"], 2, &["--samples 0"]);
    quantise(&["--data", &data, "--method", "magic"], 2, &["no such method", "entropy"]);
    quantise(&["--data", &data, "--method", "percentile:10"], 2, &["above 50"]);
    quantise(&["--data", &data, "--keep", "nothing"], 3, &["layer 'nothing'", "no layer of this name"]);
    quantise(&["--data", &data, "--samples", "30", "--min-sqnr", "500"], 3, &["cannot be met", "best found"]);
    quantise(&["--min-sqnr", "30"], 2, &["a budget"]);
    quantise(&["--max-drop", "many"], 2, &["no percentage"]);
    quantise(&["--float-macs", "200"], 2, &["no percentage"]);
    let empty = dir.path("empty");
    fs::create_dir(&empty).expect("made");
    quantise(&["--data", &empty], 3, &["holds no samples"]);
    let write = |name: &str, t: &Tensor| {
        let folder = dir.path(name);
        fs::create_dir(&folder).expect("made");
        fs::write(format!("{folder}/0.npy"), infc::npy::write(t).expect("has a NumPy name")).expect("written");
        folder
    };
    let nan = write("nan", &Tensor::from_vec([1, 64], vec![f32::NAN; 64]));
    quantise(&["--data", &nan], 3, &["sample 0, input 'input'", "element 0 is NaN"]);
    let wide = write("wide", &Tensor::from_vec([1, 65], vec![0.0f32; 65]));
    quantise(&["--data", &wide], 3, &["f32[1, 65]", "64"]);
    let ranges = dir.path("ranges.json");
    check(
        &[
            "calibrate",
            &other,
            "--data",
            &examples().join("glyphs_cnn/eval.npz").display().to_string(),
            "--samples",
            "2",
            "-o",
            &ranges,
        ],
        0,
        &["ranges"],
    );
    quantise(&["--ranges", &ranges], 3, &["ranges.json", "another model"]);
    check(&["calibrate", &model, "-o", &ranges], 2, &["needs data"]);
    check(&["compare", &model, &other, "--data", &data, "--samples", "2"], 3, &["input"]);
    assert!(!std::path::Path::new(&out).exists(), "nothing is written where nothing was made");
}

/// What moves into weights must not cost more than it gains: channels that are rarely other than 0 in few samples go beyond what was seen.
#[test]
fn smoothing_does_no_harm() {
    let dir = Folder::new();
    for (name, samples) in [
        ("digits_mlp", "16"),
        ("digits_mlp", "32"),
        ("digits_mlp", "64"),
        ("glyphs_cnn", "16"),
        ("glyphs_cnn", "32"),
        ("glyphs_cnn", "64"),
    ] {
        let folder = examples().join(name);
        let (model, data) = (folder.join("model.onnx").display().to_string(), folder.join("eval.npz").display().to_string());
        let quality = |more: &[&str]| -> f64 {
            let (out, figures) = (dir.path("q.onnx"), dir.path("q.json"));
            let quantise = [
                "quantize",
                &model,
                "--data",
                &data,
                "--samples",
                samples,
                "--evaluate",
                &data,
                "-o",
                &out,
                "--report",
                &figures,
            ];
            check(&[&quantise[..], more].concat(), 0, &["SQNR"]);
            let json: serde_json::Value = serde_json::from_str(&fs::read_to_string(&figures).expect("written")).expect("JSON");
            json["steps"][0]["outputs"][0]["sqnr_db"].as_f64().expect("a number")
        };
        let (with, without) = (quality(&[]), quality(&["--no-smooth"]));
        assert!(with > without - 0.5, "{name}, {samples} samples: {with} dB with smoothing, {without} without");
    }
}

#[test]
fn nothing_is_done_before_all_is_checked() {
    let dir = Folder::new();
    let (model, data) = (dir.path("m.onnx"), data());
    fs::copy(self::model(), &model).expect("copied");
    let before = fs::read(&model).expect("there");
    let out = dir.path("q.onnx");
    let ask = |words: &[&str], exit: i32, want: &[&str]| check(words, exit, want);
    let linked = dir.path("link.onnx");
    #[cfg(unix)]
    std::os::unix::fs::symlink(&model, &linked).expect("made");
    let same = format!("{}/./m.onnx", std::path::Path::new(&model).parent().expect("a folder").display());
    for to in [&model, &same, &linked] {
        ask(&["quantize", &model, "-o", to], 2, &["is the model itself"]);
        ask(&["prune", &model, "-o", to], 2, &["is the model itself"]);
        ask(&["convert", &model, to], 2, &["is the model itself"]);
    }
    assert!(fs::read(&model).expect("there") == before);
    let gone = dir.path("gone/r.html");
    for command in ["quantize", "prune"] {
        ask(&[command, &model, "-o", &out, "--report", &gone], 4, &["r.html", "No such file"]);
        ask(&[command, &model, "-o", &out, "--report", "r.txt"], 2, &["r.txt", ".html or .json"]);
        ask(&[command, &model, "-o", &out, "--data", &dir.path("gone.npz")], 4, &["gone.npz", "No such file"]);
    }
    for (options, want) in [
        ("--scheme f16 --symmetric", "--symmetric has no effect with --scheme f16"),
        ("--scheme f16 --no-smooth", "--no-smooth has no effect"),
        ("--scheme dynamic --two-bytes *", "--two-bytes has no effect"),
        ("--scheme int8 --group 32", "it belongs to --scheme int4"),
        ("--method entropy", "--method has no effect with --scheme int8, the default here"),
        ("--min-cosine 3", "no cosine"),
    ] {
        let options: Vec<&str> = options.split(' ').collect();
        ask(&[&["quantize", &model, "-o", &out], &options[..]].concat(), 2, &[want]);
    }
    ask(&["quantize", &model, "-o", &out, "--data", &data, "--seed", "1"], 2, &["--seed 1 draws samples"]);
    assert!(!dir.files().contains(&"q.onnx".to_owned()));
}
