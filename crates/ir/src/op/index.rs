//! Gather and scatter.

use super::*;

gaps! {
    Gather, GatherElements, GatherND, OneHot, ScatterElements, ScatterND, TensorScatter
}
