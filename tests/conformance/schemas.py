#!/usr/bin/env python3
"""Writes what ONNX itself says of its operators as a table: every version of every operator of `ai.onnx` and `ai.onnx.ml`.

Usage: schemas.py > crates/onnx/src/schemas.txt      (needs: pip install onnx==1.23.2)

A line `types NAME DTYPE...` names a set of types. A line `op DOMAIN NAME VERSION` has, after tabs: operands, results, type variables
and attributes. Operands and results are `name:type`, with `?` for optional and `*` for any number; attributes `name:kind`, with `!` where
required. Types that are not tensors are `sequence`, `optional` and `map`.
"""
import re

import onnx

NAMES = {
    "float": "f32", "double": "f64", "float16": "f16", "bfloat16": "bf16", "float8e4m3fn": "f8e4m3fn", "float8e4m3fnuz": "f8e4m3fnuz",
    "float8e5m2": "f8e5m2", "float8e5m2fnuz": "f8e5m2fnuz", "float8e8m0": "f8e8m0", "float4e2m1": "f4e2m1", "complex64": "c64",
    "complex128": "c128", "bool": "bool", "string": "string",
}


def dtype(text):
    """`tensor(int8)` as we write it."""
    if not text.startswith("tensor("):
        return {"seq": "sequence", "opt": "optional", "map": "map", "spa": "sparse"}[text[:3]]
    inner = text[len("tensor(") : -1]
    return NAMES.get(inner) or re.sub(r"^u?int", lambda m: "u" if m[0] == "uint" else "i", inner)


def types(names, sets):
    """The name of a set of types."""
    key = " ".join(sorted({dtype(t) for t in names}))
    if " " not in key:
        return key
    return sets.setdefault(key, f"t{len(sets)}")


def parameters(params, constraints, sets):
    mark = {"Optional": "?", "Variadic": "*", "Single": ""}
    def one(p):
        kind = p.type_str if p.type_str in constraints else types(p.types, sets)
        return f"{p.name}{mark[p.option.name]}:{kind}"
    return " ".join(one(p) for p in params)


def main():
    sets, rows = {}, []
    for schema in sorted(onnx.defs.get_all_schemas_with_history(), key=lambda s: "preview" in s.domain):
        if schema.deprecated:
            continue
        constraints = {c.type_param_str: types(c.allowed_type_strs, sets) for c in schema.type_constraints}
        variables = " ".join(f"{name}={kind}" for name, kind in constraints.items())
        attributes = " ".join(f"{a.name}:{a.type.name.lower()}{'!' if a.required else ''}" for a in schema.attributes.values())
        fields = (parameters(schema.inputs, constraints, sets), parameters(schema.outputs, constraints, sets), variables, attributes)
        rows.append((schema.domain or "ai.onnx", schema.name, schema.since_version, fields))
    print(f"# Written by tests/conformance/schemas.py from onnx {onnx.__version__}.")
    for key, name in sets.items():
        print(f"types {name} {key}")
    for domain, name, since, fields in sorted(rows):
        print(f"op {domain} {name} {since}\t" + "\t".join(fields))


if __name__ == "__main__":
    main()
