//! Convolutions.

use super::*;

gaps! {
    CausalConvWithState, Col2Im, Conv, ConvTranspose, DeformConv
}
