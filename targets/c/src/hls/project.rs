//! What stands around a design: testbench, golden vectors, Makefile, the vendor's script.

use super::actors::beat;
use super::code::{Code, ap};
use super::{File, Io, Options, Vectors, ports};
use infc_stream::design::{Design, Format, Stream};

/// Bytes of an element in a file of vectors.
fn bytes(f: Format) -> usize {
    (f.bits as usize).div_ceil(8).next_power_of_two()
}

/// The C type of an element in a file of vectors.
fn element(f: Format) -> String {
    format!("{}int{}_t", if f.signed { "" } else { "u" }, 8 * bytes(f))
}

/// `data/input_x.bin` and the like: all frames, elements in the order of the stream, little-endian.
pub fn data(design: &Design, vectors: &Vectors) -> Vec<File> {
    let inputs = design.inputs.len();
    let list = ports(design);
    let file = |(k, (name, s, input)): (usize, &(String, &Stream, bool))| {
        let frames = if *input { &vectors.inputs } else { &vectors.outputs };
        let at = if *input { k } else { k - inputs };
        let size = bytes(s.format);
        let bytes = frames.iter().flat_map(|f| f[at].iter().flat_map(move |v| v.to_le_bytes().into_iter().take(size))).collect();
        File { path: format!("data/{name}.bin"), bytes }
    };
    list.iter().enumerate().map(file).collect()
}

/// The testbench: every frame once without limits, and once with FIFOs of the design's depths and ends that stop at random.
pub fn testbench(design: &Design, io: Io, vectors: &Vectors) -> String {
    let mut c = Code::default();
    let list = ports(design);
    let name = &design.name;
    c.line(format!(
        "/* Runs {name} on golden vectors and compares: ./testbench [--frames N] [--seed N] [--stalls N of 256] [--no-fifos] */"
    ));
    for include in ["<cstdio>", "<cstdlib>", "<cstring>"] {
        c.line(format!("#include {include}"));
    }
    c.line(format!("#include \"{name}.h\"\n"));
    for (port, s, _) in &list {
        c.line(format!("static {} {port}[{}];", element(s.format), s.elements()));
    }
    for (port, s, input) in list.iter() {
        if !input {
            c.line(format!("static {} {port}_want[{}];", element(s.format), s.elements()));
        }
    }
    c.line(
        "
static FILE *open_data(const char *name) {
    FILE *file = std::fopen(name, \"rb\");
    if (!file) {
        std::fprintf(stderr, \"%s: cannot be read; run the testbench in the folder of the design\\n\", name);
        std::exit(2);
    }
    return file;
}

template <typename T>
static void load(FILE *file, T *to, size_t count) {
    if (std::fread(to, sizeof *to, count, file) != count) {
        std::fprintf(stderr, \"data: too short\\n\");
        std::exit(2);
    }
}
",
    );
    for (port, s, input) in &list {
        if io == Io::Stream {
            ends(&mut c, port, s, *input);
        }
    }
    run(&mut c, name, io, &list);
    main(&mut c, &list, vectors.inputs.len());
    c.text
}

/// The function that writes an input to its stream, or reads an output from it.
fn ends(c: &mut Code, port: &str, s: &Stream, input: bool) {
    c.open(format!("static void {}_{port}(hls::stream<{}> &s)", if input { "feed" } else { "drain" }, beat(s)));
    c.open(format!("for (int i = 0; i < {}; i++)", s.beats()));
    let from = format!("{port}[i * {} + l]", s.lanes);
    if input {
        c.line(format!("{} x;", beat(s)));
        c.line(format!("for (int l = 0; l < {}; l++) x.v[l] = {from};", s.lanes));
        c.line("s.write(x);");
    } else {
        c.line(format!("const {} x = s.read();", beat(s)));
        let value = if s.format.signed { "to_int64" } else { "to_uint64" };
        c.line(format!("for (int l = 0; l < {}; l++) {from} = ({})x.v[l].{value}();", s.lanes, element(s.format)));
    }
    c.close(2);
    c.line("");
}

/// `run_frame(net)`: one frame.
fn run(c: &mut Code, name: &str, io: Io, list: &[(String, &Stream, bool)]) {
    c.line("#ifdef INFC_SIMULATION");
    c.open("static void run_frame(hls::network *net)");
    let names: Vec<String> = list.iter().map(|p| format!("{}_port", p.0)).collect();
    let top = format!("{name}({});", names.join(", "));
    arrays_or_streams(c, io, list);
    if io == Io::Stream {
        for (port, _, input) in list {
            let f = if *input { "feed" } else { "drain" };
            c.line(format!("if (net) net->add(\"{f}_{port}\", [&] {{ {f}_{port}({port}_port); }});"));
            if *input {
                c.line(format!("else feed_{port}({port}_port);"));
            }
        }
    } else {
        c.line("(void)net;");
    }
    c.line(&top);
    if io == Io::Stream {
        for (port, ..) in list.iter().filter(|p| !p.2) {
            c.line(format!("if (!net) drain_{port}({port}_port);"));
        }
    }
    results(c, io, list);
    c.close(1);
    c.line("#else");
    c.open("static void run_frame(void *)");
    arrays_or_streams(c, io, list);
    if io == Io::Stream {
        list.iter().filter(|p| p.2).for_each(|(port, ..)| c.line(format!("feed_{port}({port}_port);")));
    }
    c.line(top);
    if io == Io::Stream {
        list.iter().filter(|p| !p.2).for_each(|(port, ..)| c.line(format!("drain_{port}({port}_port);")));
    }
    results(c, io, list);
    c.close(1);
    c.line("#endif\n");
}

fn arrays_or_streams(c: &mut Code, io: Io, list: &[(String, &Stream, bool)]) {
    for (port, s, input) in list {
        match io {
            Io::Stream => c.line(format!("hls::stream<{}> {port}_port(\"{port}\");", beat(s))),
            Io::Parallel => {
                c.line(format!("static {} {port}_port[{}];", ap(s.format), s.elements()));
                if *input {
                    c.line(format!("for (int i = 0; i < {}; i++) {port}_port[i] = {port}[i];", s.elements()));
                }
            }
        }
    }
}

fn results(c: &mut Code, io: Io, list: &[(String, &Stream, bool)]) {
    for (port, s, _) in list.iter().filter(|p| !p.2 && io == Io::Parallel) {
        let value = if s.format.signed { "to_int64" } else { "to_uint64" };
        let ty = element(s.format);
        c.line(format!("for (int i = 0; i < {}; i++) {port}[i] = ({ty}){port}_port[i].{value}();", s.elements()));
    }
}

fn main(c: &mut Code, list: &[(String, &Stream, bool)], frames: usize) {
    c.open("int main(int count, char **words)");
    c.line(format!("int frames = {frames}, fifos = 1, wrong = 0;\n    unsigned long seed = 1;\n    unsigned stalls = 32;"));
    c.open("for (int i = 1; i < count; i++)");
    c.line("const int more = i + 1 < count;");
    c.line("if (more && !std::strcmp(words[i], \"--frames\")) frames = std::atoi(words[++i]);");
    c.line("else if (more && !std::strcmp(words[i], \"--seed\")) seed = std::strtoul(words[++i], 0, 10);");
    c.line("else if (more && !std::strcmp(words[i], \"--stalls\")) stalls = (unsigned)std::atoi(words[++i]);");
    c.line("else if (!std::strcmp(words[i], \"--no-fifos\")) fifos = 0;");
    c.open("else");
    c.line("std::fprintf(stderr, \"usage: testbench [--frames N] [--seed N] [--stalls N] [--no-fifos]\\n\");\n        return 2;");
    c.close(2);
    c.line("#ifndef INFC_SIMULATION\n    fifos = 0; /* the vendor's streams have no end in simulation */\n#endif");
    c.line(format!("if (frames > {frames}) frames = {frames};"));
    for (port, ..) in list {
        c.line(format!("FILE *{port}_file = open_data(\"data/{port}.bin\");"));
    }
    c.open("for (int frame = 0; frame < frames; frame++)");
    for (port, s, input) in list {
        c.line(format!("load({port}_file, {port}{}, {});", if *input { "" } else { "_want" }, s.elements()));
    }
    c.open("for (int mode = 0; mode <= fifos; mode++)");
    for (port, ..) in list.iter().filter(|p| !p.2) {
        c.line(format!("std::memset({port}, 0x5a, sizeof {port});"));
    }
    c.line("#ifdef INFC_SIMULATION");
    c.open("if (mode)");
    c.line("hls::network net(seed + (unsigned long)frame, stalls);");
    c.line("run_frame(&net);");
    c.otherwise();
    c.line("run_frame(nullptr);");
    c.close(1);
    c.line("#else");
    c.line("(void)seed, (void)stalls;\n            run_frame(nullptr);");
    c.line("#endif");
    for (port, s, _) in list.iter().filter(|p| !p.2) {
        c.open(format!("for (int i = 0; i < {}; i++)", s.elements()));
        c.open(format!("if ({port}[i] != {port}_want[i] && wrong++ < 10)"));
        c.line(format!(
            "std::printf(\"frame %d%s, {port}[%d]: %lld, want %lld\\n\", frame, mode ? \" with FIFOs\" : \"\", i, (long long){port}[i], (long long){port}_want[i]);"
        ));
        c.close(2);
    }
    c.close(2);
    c.line("if (wrong) std::printf(\"wrong: %d elements\\n\", wrong);");
    c.line(
        "else std::printf(\"ok: %d frames%s\\n\", frames, fifos ? \", without limits and with FIFOs and random stalls\" : \"\");",
    );
    c.line("return wrong != 0;");
    c.close(1);
}

/// Simulation by g++.
pub fn makefile(design: &Design) -> String {
    let name = &design.name;
    format!(
        "# C simulation of {name}: make\nCXX ?= g++\nCXXFLAGS ?= -O2\nSTRICT = -std=c++14 -Wall -Wextra -pedantic -Wno-unknown-pragmas -Wno-unused-label\n\n\
         run: testbench\n\t./testbench\n\n\
         testbench: {name}.cpp testbench.cpp {name}.h {name}_weights.h infc_hls.h\n\t$(CXX) $(STRICT) $(CXXFLAGS) {name}.cpp testbench.cpp -o testbench\n\n\
         clean:\n\trm -f testbench\n\n.PHONY: run clean\n"
    )
}

/// The script for Vitis HLS.
pub fn script(design: &Design, options: &Options) -> String {
    let name = &design.name;
    let data: String = ports(design).iter().map(|p| format!("add_files -tb data/{}.bin\n", p.0)).collect();
    format!(
        "# Simulation, synthesis, co-simulation and export of {name} by Vitis HLS: vitis_hls -f build.tcl\n\
         open_project -reset {name}_prj\nset_top {name}\n\
         add_files {name}.cpp -cflags \"-std=c++14 -DINFC_VENDOR_TYPES\"\n\
         add_files -tb testbench.cpp -cflags \"-std=c++14 -DINFC_VENDOR_TYPES\"\n{data}\
         open_solution -reset solution -flow_target vivado\nset_part {}\ncreate_clock -period {} -name default\n\
         csim_design -argv \"--no-fifos\"\ncsynth_design\ncosim_design -argv \"--no-fifos --frames 2\"\nexport_design -format ip_catalog\nexit\n",
        options.machine.part, options.clock_ns
    )
}
