//! Random cases of every operator (those that run on the host: `on_host`): random shapes, dtypes and attributes, edges and NaN, empty tensors, axes from the
//! end; the interpreter against compiled code, bit by bit where the operator's class is exact. Sums are of small integers, so that
//! every order of adding up is exact.
//!
//! A few cases of each operator by default, `PROPTEST_CASES` for each family. `INFC_CASE=FAMILY_OP_NUMBER` runs one;
//! `INFC_CASES_OUT=FOLDER` writes all as models in ONNX's test layout, for other engines.

mod control;
mod conv;
mod elementwise;
mod index;
mod kit;
mod ml;
mod norm;
mod on_host;
mod quant;
mod reduce;
mod rnn;
mod shape;

mod listed;
