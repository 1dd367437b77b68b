"""Folding sweeps: what infc estimates for networks under budgets, as tables of Markdown between the marks of a page.

usage: sweep.py INFC PAGE [NAME=MODEL.onnx,MACHINE,OPTION,...]...

Each network is folded for the whole share of its part and for ever smaller numbers of multipliers, then of look-up tables.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

BEGIN, END = "<!-- sweep -->", "<!-- /sweep -->"


def design(infc, model, machine, options, budget, folder):
    command = [infc, "compile", model, "--target", "fpga-hls", "--machine", machine, "--json", "--vectors", "1", "-o", folder, *options]
    if budget:
        command += ["--budget", ",".join(f"{k}={v}" for k, v in budget.items())]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout)
    if "does not fit" in done.stderr:
        return None
    sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")


def rows(infc, name, model, machine, options):
    out, seen = [], set()
    with tempfile.TemporaryDirectory() as folder:
        first = design(infc, model, machine, options, None, folder)
        if first is None:
            return [f"| {name} | {machine} | the part's share | does not fit | | | | | |"]
        budgets = [("the part's share", None)]
        for k in range(1, 5):
            dsp, lut = first["resources"]["dsp"] >> (2 * k), first["resources"]["lut"] * 10 // (10 + 6 * k)
            budgets.append((f"{dsp} DSP, {lut:,} LUT", {"dsp": dsp, "lut": lut}))
        for label, budget in budgets:
            r = design(infc, model, machine, options, budget, folder)
            if r is None:
                out.append(f"| {name} | {machine} | {label} | does not fit | | | | | |")
                break
            u = r["resources"]
            key = (r["interval"], u["dsp"], u["lut"])
            if key in seen:
                continue
            seen.add(key)
            latency = r["latency"] * json.loads((pathlib.Path(folder) / "report.json").read_text())["clock_ns"] / 1e3
            cells = [name, machine, label, f"{u['dsp']:,}", f"{u['lut']:,}", f"{u['bram18']:,}", f"{r['interval']:,}", f"{latency:,.1f}", f"{r['fps']:,.0f}"]
            out.append("| " + " | ".join(cells) + " |")
    return out


def main():
    infc, page, *networks = sys.argv[1:]
    table = ["| network | part | budget | DSP | LUT | BRAM18 | cycles a frame | latency, µs | frames a second |", "|---|---|---|---|---|---|---|---|---|"]
    for text in networks:
        name, rest = text.split("=", 1)
        model, machine, *options = rest.split(",")
        table += rows(infc, name, model, machine, options)
        print("\n".join(table[-5:]), flush=True)
    page = pathlib.Path(page)
    text = page.read_text()
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(before + BEGIN + "\n" + "\n".join(table) + "\n" + END + after)


main()
